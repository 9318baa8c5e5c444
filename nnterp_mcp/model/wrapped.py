"""A Hugging Face causal LM as nnsight wraps it: its sizes, its device, and the capabilities that were verified."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from nnsight import TransformersModel
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import OutOfOrderError
from transformers import PreTrainedModel

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.loading.fingerprint import fingerprint
from nnterp_mcp.model.structure.anatomy import Anatomy, Site
from nnterp_mcp.model.structure.attention_backend import current_attention, switch_attention
from nnterp_mcp.model.structure.call_recorder import input_device
from nnterp_mcp.model.structure.context_lengths import stretch_of, table_length
from nnterp_mcp.model.structure.locations import explain_order
from nnterp_mcp.model.structure.rename import RenameConfig
from nnterp_mcp.model.text.tokens import embedded_ids

_BOUNDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
"""Fields of a configuration that say how many tokens a model reads."""


class WrappedModel(TransformersModel):
    """A wrapped model with its anatomy: sizes, device, attention, capabilities. Nothing here needs a trace.

    Attributes:
        name: What errors and cards call the model.
        anatomy: Its modules and layers, as they were resolved.
        rename_config: Which modules are which, as it was given.
    """

    name: str
    anatomy: Anatomy
    rename_config: RenameConfig | None
    _refusals: dict[str, str]

    @property
    def module(self) -> PreTrainedModel:
        """The Hugging Face model itself."""
        return cast("PreTrainedModel", self._module)

    @property
    def _model(self) -> PreTrainedModel:
        """The same under nnterp's name for it."""
        return self.module

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return input_device(self.module)

    @property
    def computing_on(self) -> tuple[str, str]:
        """The device that computes, and its name."""
        device = self.device
        return str(device), torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def computing_dtype(self) -> torch.dtype:
        """The dtype of its computations."""
        return self.module.dtype

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights."""
        return int(self.module.get_memory_footprint())

    @property
    def fingerprint(self) -> str:
        """A short hash of its weights."""
        return fingerprint(self.module)

    @contextmanager
    def stopping(self, check: Callable[[], None], tell: Callable[[str], None]) -> Generator[None]:
        """Calls `check` before every layer, since a pass may take many seconds.

        Args:
            check: Raises to end the pass.
            tell: Called with what the pass waits for, on models that another machine serves.
        """
        with ExitStack() as stack:
            for layer in self.anatomy.layers:
                stack.enter_context(layer.block.module.register_forward_pre_hook(lambda *_: check()))
            yield

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.anatomy.num_layers

    @property
    def num_heads(self) -> int:
        """Number of (query) attention heads of a layer; the largest where layers differ."""
        return self.anatomy.num_heads

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.hidden_size

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        return self.anatomy.vocab_size

    @property
    def context(self) -> int | None:
        """The longest context in tokens, None where neither the configuration nor a position table sets a bound."""
        config = self.module.config.get_text_config(decoder=True)
        bounds = [getattr(config, name, None) for name in _BOUNDS]
        stretch = stretch_of(self.module)
        said = [int(bound * stretch) for bound in bounds if isinstance(bound, int) and bound > 0][:1]
        held = table_length(self.module, self.anatomy.embed_tokens.module)
        return min([*said, *([] if held is None else [held])], default=None)

    @property
    def embedded(self) -> int:
        """Number of token ids that it embeds."""
        found = embedded_ids(self.module)
        return self.vocab_size if found is None else found

    @property
    def pad_id(self) -> int:
        """The token that masked positions hold: any that is embedded."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return int(pad) if pad is not None and 0 <= pad < self.embedded else 0

    @property
    def padding_side(self) -> str:
        """The side on which text is padded in a batch: the left, unless only the right gives exact results."""
        return str(getattr(self.tokenizer, "padding_side", "left"))

    def pad_on(self, side: Literal["left", "right"]) -> None:
        """Pad text on this side from now on."""
        if self.tokenizer is not None:
            self.tokenizer.padding_side = side

    @property
    def attention(self) -> str:
        """How attention is computed now: `eager`, `sdpa` or another implementation of transformers."""
        return current_attention(self.module)

    def set_attention(self, implementation: Literal["eager", "sdpa"]) -> None:
        """Switch how attention is computed, on the loaded weights.

        Args:
            implementation: `eager` forms the probabilities, so that they can be read and edited; `sdpa` is
                the fused kernel.

        Raises:
            InvalidRequest: Another name came.
            Unsupported: The architecture has no such path.
        """
        if implementation not in ("eager", "sdpa"):
            raise InvalidRequest(f"attention {implementation!r} does not exist: choose eager or sdpa.")
        self.use_attention(implementation)

    def use_attention(self, implementation: str) -> None:
        """Switch to any implementation of transformers, such as the one that `attention` named before."""
        switch_attention(self.module, implementation)

    @contextmanager
    def attending_eagerly(self) -> Generator[None]:
        """While this lasts, the model forms attention probabilities."""
        before = self.attention
        if before == "eager":
            yield
            return
        self.set_attention("eager")
        try:
            yield
        finally:
            self.use_attention(before)

    def can(self, capability: str) -> bool:
        """True unless `require` refuses this capability."""
        return capability not in self._refusals

    def require(self, capability: str) -> None:
        """Refuse what the checks at load found not to work.

        Args:
            capability: What the caller is about to rely on: `lens`, `batch`, `attention`, `attention_edit`,
                ….

        Raises:
            Unsupported: The check failed; with its reason.
        """
        reason = self._refusals.get(capability)
        if reason is not None:
            raise Unsupported(reason)

    @property
    def refusals(self) -> dict[str, str]:
        """The capabilities that `require` refuses, each with its reason."""
        return dict(self._refusals)

    def refuse(self, reasons: dict[str, str]) -> None:
        """Set the capabilities that `require` refuses, each with its reason."""
        self._refusals = dict(reasons)

    def interleave(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the model under a trace's interventions; traces and generations call it.

        Raises:
            OutOfOrderError: A value was requested after the model had computed it; under its standard name.
        """
        try:
            return super().interleave(fn, *args, **kwargs)
        except OutOfOrderError as error:
            explained = explain_order(self.anatomy, str(error))
            if explained is not None:
                error.args = (explained,)
            raise

    def envoy(self, site: Site) -> Envoy:
        """The nnsight wrapper of a module of the anatomy."""
        return self.interleaver.envoys[id(site.module)]

    @contextmanager
    def standing_down(self) -> Generator[None]:
        """While this lasts, modules run unobserved: nothing in a trace sees or counts their calls."""
        was = self.interleaver.interleaving
        self.interleaver.interleaving = False
        try:
            yield
        finally:
            self.interleaver.interleaving = was
