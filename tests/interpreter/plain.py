"""A plain model with plain hooks: one sequence at a time, whole, without padding and without a cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

from tests.interpreter.families import FAMILIES, Family

Place = tuple[str, int]
"""A site and a layer; the layer of the token embeddings is -1."""

States = dict[Place, Tensor]
"""What is at each place so far: (position, width), (position, head, width), or (query, head, key).

Beside the sites there are `own_attention`, the probabilities before any edit, and `readable`, (query, key): which keys
a layer lets each query read.
"""

Edit = Callable[[Tensor, States], Tensor]
"""What becomes of the states at a place, given those before it."""

Edits = Mapping[Place, Sequence[Edit]]

_IMPLEMENTATION = "interpreted"
_PARTS = ("projection", "attention", "attention_added", "mlp_read", "mlp", "mlp_added")


@dataclass(frozen=True)
class Ran:
    """One pass.

    Attributes:
        logits: At every position.
        states: At every place, the edits made.
    """

    logits: Tensor
    states: States


@dataclass
class Plain:
    """A model of its own, in float32, whose every site is open."""

    model: Any
    family: Family
    _edits: Edits = field(default_factory=dict[Place, list[Edit]])
    _states: States = field(default_factory=dict[Place, Tensor])
    _layer: int = -1

    @classmethod
    def load(cls, folder: Path, model_type: str) -> Plain:
        """Loads what `save_tiny` saved."""
        AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        made = cls(model, FAMILIES[model_type])
        if made.family.interface:
            AttentionInterface.register(_IMPLEMENTATION, made._attend)
            model.set_attn_implementation(_IMPLEMENTATION)
        return made

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.model.config.num_attention_heads

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.model.get_submodule(self.family.layers))

    def run(self, ids: Sequence[int], edits: Edits | None = None) -> Ran:
        """Runs a sequence with edits made; without gradients unless the caller has switched them on."""
        if self.family.interface:
            AttentionInterface.register(_IMPLEMENTATION, self._attend)
        self._edits, self._states = edits or {}, {}
        with self._hooked():
            logits = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        return Ran(logits, self._states)

    def _at(self, site: str, layer: int, states: Tensor) -> Tensor:
        """What goes on from a place; kept as it is then, since some models write on."""
        if site == "layers_input":
            self._states["readable", layer] = torch.ones(len(states), len(states), dtype=torch.bool).tril()
        if site == "attention_probabilities":
            self._states["own_attention", layer] = states
        for edit in self._edits.get((site, layer), ()):
            states = edit(states, self._states)
        self._states[site, layer] = states if states.requires_grad else states.clone()
        return states

    @contextmanager
    def _hooked(self) -> Generator[None]:
        family = self.family
        scale = getattr(self.model.config, family.multiplier) if family.multiplier else 1.0
        with ExitStack() as stack:
            embedding = self.model.get_submodule(family.embedding)
            stack.callback(embedding.register_forward_hook(self._after("token_embeddings", -1)).remove)
            for index, layer in enumerate(self.model.get_submodule(family.layers)):
                parts = {name: layer.get_submodule(getattr(family, name)) for name in _PARTS}
                if "neurons" not in family.lacks:
                    down = layer.get_submodule(family.down)
                    hook = down.register_forward_pre_hook(self._before("neurons", index), with_kwargs=True)
                    stack.callback(hook.remove)
                for hook in (
                    layer.register_forward_pre_hook(self._before("layers_input", index), with_kwargs=True),
                    parts["projection"].register_forward_pre_hook(
                        self._before("heads_output", index), with_kwargs=True
                    ),
                    parts["attention"].register_forward_hook(self._after("attentions_raw_output", index)),
                    parts["attention_added"].register_forward_hook(self._after("attentions_output", index, scale)),
                    parts["mlp_read"].register_forward_pre_hook(self._before("mlps_input", index), with_kwargs=True),
                    parts["mlp"].register_forward_hook(self._after("mlps_raw_output", index)),
                    parts["mlp_added"].register_forward_hook(self._after("mlps_output", index, scale)),
                    layer.register_forward_hook(self._after("layers_output", index)),
                ):
                    stack.callback(hook.remove)
            if not family.interface:
                stack.enter_context(self._products())
            yield

    def _before(self, site: str, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if site == "layers_input":
                self._layer = layer
            came = args[0] if args else kwargs["hidden_states"]
            states = came.reshape(-1, came.shape[-1])
            if site == "heads_output":
                states = states.unflatten(-1, (self.heads, -1))
            edited = self._at(site, layer, states).reshape(came.shape)
            return ((edited, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edited})

        return hook

    def _after(self, site: str, layer: int, scale: float = 1.0) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            came = output if isinstance(output, Tensor) else output[0]
            edited = (self._at(site, layer, came.reshape(-1, came.shape[-1]) * scale) / scale).reshape(came.shape)
            return edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))

        return hook

    def _inside(self, site: str, states: Tensor, layer: int | None = None) -> Tensor:
        """Of (1, head, position, width)."""
        edited = self._at(site, self._layer if layer is None else layer, states[0].transpose(0, 1))
        return edited.transpose(0, 1)[None]

    def _attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attention as the papers write it; each query head has a key and a value of its own."""
        repeats = query.shape[1] // key.shape[1]
        query = self._inside("queries", query)
        key = self._inside("keys", key.repeat_interleave(repeats, 1))
        value = self._inside("values", value.repeat_interleave(repeats, 1))
        if attention_mask is not None:
            self._states["readable", self._layer] = attention_mask[0, 0] > -1
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is None:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~causal, -torch.inf)
        else:
            scores = scores + attention_mask
        if s_aux is not None:
            sinks = s_aux.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sinks], -1)
        pattern = scores.softmax(-1)[..., : key.shape[-2]]
        pattern = self._inside("attention_probabilities", pattern)
        return (pattern @ value).transpose(1, 2), pattern

    @contextmanager
    def _products(self) -> Generator[None]:
        """For modelling code that computes attention by itself: its products and its softmax, replaced."""
        turn = cycle(("scores", "weighing"))
        softmax, baddbmm, bmm, matmul = functional.softmax, Tensor.baddbmm, torch.bmm, Tensor.__matmul__

        def soft(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self._inside("attention_probabilities", softmax(scores, *args, **kwargs))

        def scored(bias: Tensor, batch1: Tensor, batch2: Tensor, **kwargs: Any) -> Tensor:
            query = self._inside("queries", batch1[None])[0]
            key = self._inside("keys", batch2.transpose(-1, -2)[None])[0].transpose(-1, -2)
            return baddbmm(bias, query, key, **kwargs)

        def weighed(pattern: Tensor, value: Tensor) -> Tensor:
            return bmm(pattern, self._inside("values", value[None])[0])

        def multiplied(left: Tensor, right: Tensor) -> Tensor:
            if left.ndim != 4:
                return matmul(left, right)
            right = right.expand(1, self.heads, -1, -1)
            if next(turn) == "weighing":
                return matmul(left, self._inside("values", right))
            keys = self._inside("keys", right.transpose(-1, -2)).transpose(-1, -2)
            return matmul(self._inside("queries", left), keys)

        with (
            patch.object(functional, "softmax", soft),
            patch.object(Tensor, "baddbmm", scored),
            patch.object(torch, "bmm", weighed),
            patch.object(Tensor, "__matmul__", multiplied),
        ):
            yield
