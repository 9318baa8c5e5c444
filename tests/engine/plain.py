"""Plain transformers with plain hooks: what an intervention should do, written out for each family.

One prompt at a time, without padding, cache or nnsight. An edit is a function of the states at one site of one layer,
(position, width) or (position, head, width), that changes them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Edit = Callable[[Tensor], None]
Edits = dict[tuple[str, int], Edit]

IMPLEMENTATION = "written_out"


@dataclass(frozen=True)
class Names:
    """Where a family keeps its parts; those inside a layer are relative to it."""

    embedding: str
    layers: str
    attention: str
    attention_output: str
    projection: str
    mlp_output: str | None
    mlp_input: str | None = None
    """The MLP itself, where another module returns its output."""
    down: str = "mlp.down_proj"
    """The last linear map of the MLP, whose inputs are the neurons."""
    shared: bool = True
    """Whether its attention goes through the interface that transformers shares among models."""
    attention_norm: str | None = None
    """The norm between attention and the residual stream."""
    mlp_norm: str | None = None
    """The same for the MLP."""


LLAMA = Names("model.embed_tokens", "model.layers", "self_attn", "self_attn", "self_attn.o_proj", "mlp")
FAMILIES: dict[str, Names] = {
    "gpt2": Names("transformer.wte", "transformer.h", "attn", "attn", "attn.c_proj", "mlp", down="mlp.c_proj"),
    "llama": LLAMA,
    "gemma2": replace(LLAMA, attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    "gpt_neox": Names(
        "gpt_neox.embed_in",
        "gpt_neox.layers",
        "attention",
        "attention",
        "attention.dense",
        "mlp",
        down="mlp.dense_4h_to_h",
    ),
    "opt": Names(
        "model.decoder.embed_tokens", "model.decoder.layers", "self_attn", "self_attn", "self_attn.out_proj", None
    ),
    "falcon": Names(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention",
        "self_attention",
        "self_attention.dense",
        "mlp",
        down="mlp.dense_4h_to_h",
        shared=False,
    ),
    "bloom": Names(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention",
        "self_attention.dense",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "mlp",
        down="mlp.dense_4h_to_h",
        shared=False,
    ),
    "smollm2-135m": LLAMA,
}
SANDWICHED: dict[str, Names] = {
    "gemma2": FAMILIES["gemma2"],
    "olmo2": FAMILIES["gemma2"],
    "hyperclovax": replace(LLAMA, attention_norm="post_norm1", mlp_norm="post_norm2"),
    "granite": LLAMA,
}
"""Families in which a norm or a multiplier comes behind the sublayers."""


@dataclass
class Plain:
    """A model to compare with.

    Attributes:
        model: Its own copy of the weights, in float32; with eager attention where that is not shared.
        names: Where its parts are.
    """

    model: Any
    names: Names
    _edits: Edits = field(default_factory=dict)
    _layer: int = -1

    def __post_init__(self) -> None:
        if self.names.shared:
            AttentionInterface.register(IMPLEMENTATION, self._attend)
            AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
            self.model.set_attn_implementation(IMPLEMENTATION)

    @property
    def heads(self) -> int:
        return self.model.config.num_attention_heads

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.get_submodule(self.names.layers)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], edits: Edits) -> Tensor:
        """The logits at every position with edits made."""
        if self.names.shared:
            AttentionInterface.register(IMPLEMENTATION, self._attend)
        with self._hooked(edits):
            return self.model(torch.tensor([ids]), use_cache=False).logits[0]

    def probabilities(self, ids: Sequence[int], edits: Edits) -> Tensor:
        """The distribution after the last token."""
        return self.logits(ids, edits)[-1].double().softmax(-1)

    def read(self, ids: Sequence[int], site: str, layer: int) -> Tensor:
        """The clean states at one place."""
        found: list[Tensor] = []
        self.logits(ids, {(site, layer): lambda states: found.append(states.clone())})
        return found[0]

    def slopes(
        self, ids: Sequence[int], keys: Sequence[tuple[str, int]], metric: Callable[[Tensor], Tensor], edits: Edits
    ) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """The states at places, edits made, and the gradient there of a metric of the logits at the last position."""
        found: dict[tuple[str, int], Tensor] = {}

        def keep(key: tuple[str, int]) -> Edit:
            def edit(states: Tensor) -> None:
                if key in edits:
                    edits[key](states)
                states.retain_grad()
                found[key] = states

            return edit

        if self.names.shared:
            AttentionInterface.register(IMPLEMENTATION, self._attend)
        with self._hooked(edits | {key: keep(key) for key in keys}):
            metric(self.model(torch.tensor([ids]), use_cache=False).logits[0, -1]).backward()
        return {key: (states.detach(), states.grad) for key, states in found.items() if states.grad is not None}

    @contextmanager
    def _hooked(self, edits: Edits) -> Generator[None]:
        names, self._edits = self.names, edits
        with ExitStack() as stack:
            embedding = self.model.get_submodule(names.embedding)
            stack.callback(embedding.register_forward_hook(self._after("token_embeddings", -1)).remove)
            for index, layer in enumerate(self.layers):
                hooks = [
                    layer.register_forward_pre_hook(self._before("layers_input", index), with_kwargs=True),
                    layer.register_forward_hook(self._after("layers_output", index)),
                    *self._behind(layer, "attentions", index, names.attention_output, names.attention_norm),
                    layer.get_submodule(names.projection).register_forward_pre_hook(
                        self._before("heads_output", index, self.heads), with_kwargs=True
                    ),
                ]
                if names.mlp_output:
                    hooks += self._behind(layer, "mlps", index, names.mlp_output, names.mlp_norm)
                    reads = layer.get_submodule(names.mlp_input or names.mlp_output)
                    hooks.append(reads.register_forward_pre_hook(self._before("mlps_input", index), with_kwargs=True))
                    down = layer.get_submodule(names.down)
                    hooks.append(down.register_forward_pre_hook(self._before("neurons", index), with_kwargs=True))
                for hook in hooks:
                    stack.callback(hook.remove)
            if not names.shared:
                stack.enter_context(self._products())
            yield
        self._edits = {}

    def _behind(self, layer: nn.Module, part: str, index: int, output: str, norm: str | None) -> list[Any]:
        """Hooks on what a sublayer computes, and on what is added to the residual stream."""
        sites = {f"{part}_raw_output": output, f"{part}_output": norm or output}
        return [
            layer.get_submodule(path).register_forward_hook(self._after(site, index)) for site, path in sites.items()
        ]

    def _edit(self, site: str, layer: int, states: Tensor) -> Tensor:
        if (site, layer) not in self._edits:
            return states
        states = states.clone()
        self._edits[site, layer](states)
        return states

    def _before(self, site: str, layer: int, heads: int | None = None) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if site == "layers_input":
                self._layer = layer
            states = args[0] if args else kwargs["hidden_states"]
            edited = states[0] if heads is None else states[0].unflatten(-1, (heads, -1))
            edited = self._edit(site, layer, edited).reshape(states.shape)
            return ((edited, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edited})

        return hook

    def _after(self, site: str, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            states = output if isinstance(output, Tensor) else output[0]
            edited = self._edit(site, layer, states[0])[None]
            return edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))

        return hook

    def _inside(self, site: str, states: Tensor) -> Tensor:
        """Edits (1, head, position, width)."""
        return self._edit(site, self._layer, states[0].transpose(0, 1)).transpose(0, 1)[None]

    def _attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attention as the papers write it."""
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        query, key, value = (
            self._inside(site, states) for site, states in (("queries", query), ("keys", key), ("values", value))
        )
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        read = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if (window := kwargs.get("sliding_window")) is not None:
            read &= ~read.tril(-window)
        pattern = self._inside("attention_probabilities", scores.masked_fill(~read, -torch.inf).softmax(-1))
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
            if left.ndim == 4:
                right = right.expand(1, self.heads, -1, -1)
                if next(turn) == "weighing":
                    return matmul(left, self._inside("values", right))
                left = self._inside("queries", left)
                right = self._inside("keys", right.transpose(-1, -2)).transpose(-1, -2)
            return matmul(left, right)

        with (
            patch.object(functional, "softmax", soft),
            patch.object(Tensor, "baddbmm", scored),
            patch.object(torch, "bmm", weighed),
            patch.object(Tensor, "__matmul__", multiplied),
        ):
            yield
