"""The long form of the checks: every capability against plain transformers with plain hooks.

The checks at load test that the standard names are consistent; these test that they give transformers' own numbers, for
reading and for editing, layer by layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from torch import Tensor, nn

from nnterp_mcp.errors import NnterpError, Unsupported
from nnterp_mcp.model.loading.load_checks import check_model
from nnterp_mcp.model.loading.verdicts import TOLERANCES, Check
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import other_ids, probe_ids
from nnterp_mcp.verification import reference
from nnterp_mcp.verification.reference import DiffersError, Ids

CAPABILITIES = (
    "names",
    "lens",
    "attention",
    "attention_edit",
    "heads",
    "skip",
    "batch_left",
    "batch_right",
    "causal",
    "lengths",
    "generation",
    "as_generate",
)
"""The lines of a report."""

LONG, SHORT = 7, 4
"""Tokens of the prompts."""


@dataclass(frozen=True)
class Report:
    """The result of the full checks of one model.

    Attributes:
        name: The model, or its type.
        architecture: Its class in transformers.
        checks: One entry for each capability. One that is not passed was refused, or is wrong.
        wrong: The capabilities that were offered and gave other numbers than plain transformers.
        lens_difference: Largest difference of the lens from the logits of plain transformers.
        seconds: How long it took.
    """

    name: str
    architecture: str
    checks: tuple[Check, ...]
    wrong: tuple[str, ...]
    lens_difference: float | None
    seconds: float

    def passed(self, capability: str) -> bool:
        """True if a capability was verified."""
        return any(check.name == capability and check.passed for check in self.checks)

    def reason(self) -> str:
        """Why the first capability that is missing is missing; empty when none is."""
        return next((f"{check.name}: {check.detail}" for check in self.checks if not check.passed), "")


def check_thoroughly(model: StandardizedTransformer) -> Report:
    """Verify every capability of a model against plain transformers with plain hooks.

    Runs some 20 short forward passes. Attention is switched to eager for some of them and back.

    Returns:
        The report.
    """
    begun = time.monotonic()
    check_model(model)
    bench = _Bench(model)
    found = [measure_once(capability, measure) for capability, measure in bench.measures()]
    checks = tuple(check for check, _ in found)
    wrong = tuple(check.name for check, is_wrong in found if is_wrong)
    seconds = time.monotonic() - begun
    return Report(model.name, type(model.module).__name__, checks, wrong, bench.lens_difference, seconds)


def measure_once(capability: str, measure: Callable[[], str]) -> tuple[Check, bool]:
    """Runs one measure; returns its check, and True if a number differed from transformers'."""
    try:
        return Check(capability, True, measure()), False
    except DiffersError as error:
        return Check(capability, False, str(error)), True
    except NnterpError as error:
        return Check(capability, False, error.message), False
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        return Check(capability, False, f"{type(error).__name__}: {first}"), False


class _Bench:
    def __init__(self, model: StandardizedTransformer) -> None:
        self.model = model
        self.plain: nn.Module = model.module
        self.ids: Ids = probe_ids(self.plain, LONG)
        self.lens_difference: float | None = None

    def measures(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Each capability, with the method of its name that measures it, here or on long texts."""
        from nnterp_mcp.verification.long_texts import LongTexts  # imported late: it uses this module's checks

        texts = LongTexts(self.model)
        for name in CAPABILITIES:
            measure = getattr(self if hasattr(self, name) else texts, name)
            yield name, self.eagerly(measure) if name.startswith("attention") else measure

    @property
    def layers(self) -> list[int]:
        """The layers that run."""
        return [layer.index for layer in self.model.anatomy.layers if layer.runs]

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.model.anatomy.layers[index].block.module for index in self.layers]

    def names(self) -> str:
        """Layer outputs are transformers' hidden states, embeddings are the embedding's; assigning takes effect."""
        model, layers = self.model, self.layers
        saved: dict[int, Tensor] = {}
        with torch.no_grad(), model.trace(input_ids=self.ids):
            embedded = nnsight.save(model.token_embeddings.clone())
            for layer in layers:
                saved[layer] = nnsight.save(model.layers_output[layer].clone())
        captured: dict[int, Tensor] = {}
        with reference.capturing_output(self.blocks, captured):
            output = reference.run_plain(self.plain, self.ids, output_hidden_states=True)
        for place, layer in enumerate(layers):
            self.same(saved[layer], captured[place], f"the output of layer {layer}")
        states = getattr(output, "hidden_states", None)
        if states is not None and len(states) == len(layers) + 1:
            first = 0 if _is_close(states[0], saved[layers[0]]) else 1  # some begin with the embedding, some do not
            for place in range(len(layers) - 1):
                self.same(saved[layers[place]], states[place + first], f"hidden state {place + first} of transformers")
        with torch.no_grad():
            self.same(embedded, model.anatomy.embed_tokens.module(self.ids), "token embeddings")
        for layer in (layers[0], layers[-1]):
            self.same(*self._assigned(layer), f"the logits after assigning the output of layer {layer}")
        return f"{len(layers)} layer outputs and assignments as in transformers"

    def _assigned(self, layer: int) -> tuple[Tensor, Tensor]:
        model = self.model
        with torch.no_grad(), model.trace(input_ids=self.ids):
            model.layers_output[layer] = _disturb(model.layers_output[layer])
            ours = nnsight.save(model.logits)
        with reference.replacing_output(model.anatomy.layers[layer].block.module, _disturb):
            return ours, reference.run_plain(self.plain, self.ids).logits

    def lens(self) -> str:
        """Each layer's lens is what plain transformers gives when the last layer returns that layer's states."""
        model, layers = self.model, self.layers
        captured: dict[int, Tensor] = {}
        with reference.capturing_output(self.blocks, captured):
            logits = reference.run_plain(self.plain, self.ids).logits
        last = len(layers) - 1
        with torch.no_grad():
            self.lens_difference = _difference(model.project_on_vocab(captured[last]), logits)
            self.same(model.project_on_vocab(captured[last]), logits, "the last layer's lens")
            for place in {0, last // 2}:
                with reference.replacing_output(self.blocks[last], lambda _, place=place: captured[place].clone()):
                    expected = reference.run_plain(self.plain, self.ids).logits
                self.same(model.project_on_vocab(captured[place]), expected, f"the lens of layer {layers[place]}")
        return f"differs from the logits by at most {self.lens_difference:.1g}"

    def eagerly(self, measure: Callable[[], str]) -> Callable[[], str]:
        """The measure under eager attention."""

        def measured() -> str:
            with self.model.attending_eagerly():
                return measure()

        return measured

    def attention(self) -> str:
        """Probabilities are what softmax gave, and what transformers returns where it returns them."""
        model = self.model
        self.model.require("attention")
        layers = [layer.index for layer in model.anatomy.layers if layer.product is not None]
        if not layers:
            raise Unsupported("no layer forms attention probabilities")
        saved: dict[int, Tensor] = {}
        with torch.no_grad(), model.trace(input_ids=self.ids):
            for layer in layers:
                saved[layer] = nnsight.save(model.attention_probabilities[layer])
        seen: dict[int, list[Tensor]] = {}

        def keep(place: int, pattern: Tensor) -> Tensor:
            seen.setdefault(self.layers[place], []).append(pattern.clone())
            return pattern

        with reference.replacing_softmax(self.blocks, LONG, keep):
            output = reference.run_plain(self.plain, self.ids)
        for layer in layers:
            patterns = [p[..., : saved[layer].shape[-1]].reshape(-1) for p in seen.get(layer, [])]
            if not any(p.numel() == saved[layer].numel() and _is_close(p, saved[layer].reshape(-1)) for p in patterns):
                raise DiffersError(f"attention of layer {layer} is not what a softmax in that layer gave")
        returned = self._returned_attentions(output)
        for layer, pattern in returned.items():
            if layer in saved and pattern.shape == saved[layer].shape:
                self.same(saved[layer], pattern, f"attention of layer {layer} as transformers returns it")
        least = min(float(saved[layer].sum(-1).min()) for layer in layers)
        sinks = "" if least > 1 - 1e-3 else f"; an attention sink leaves rows {least:.2g} to 1"
        return f"{len(layers)} layers as in transformers{sinks}"

    def _returned_attentions(self, output: Any) -> dict[int, Tensor]:
        try:
            output = reference.run_plain(self.plain, self.ids, output_attentions=True)
        except Exception:
            return {}
        attentions = getattr(output, "attentions", None) or ()
        attending = list(self.model.anatomy.attention_layers)
        if len(attentions) == len(self.layers):
            attending = self.layers
        if len(attentions) != len(attending):
            return {}
        return {layer: item for layer, item in zip(attending, attentions, strict=True) if item is not None}

    def attention_edit(self) -> str:
        """Editing gives the logits that plain transformers gives when its softmax is edited."""
        model = self.model
        self.model.require("attention_edit")
        layers = [layer.index for layer in model.anatomy.layers if layer.product is not None]
        for layer in {layers[0], layers[-1]}:
            with torch.no_grad(), model.trace(input_ids=self.ids):
                pattern = model.attention_probabilities[layer]
                _look_at_first(pattern)
                edited = nnsight.save(model.logits)
            with torch.no_grad(), model.trace(input_ids=self.ids):
                model.attention_probabilities[layer] = _look_at_first(model.attention_probabilities[layer].clone())
                assigned = nnsight.save(model.logits)
            place = self.layers.index(layer)
            with reference.replacing_softmax(
                self.blocks, LONG, lambda at, p, place=place: _look_at_first(p.clone()) if at == place else p
            ):
                expected = reference.run_plain(self.plain, self.ids).logits
            if _is_close(expected, reference.run_plain(self.plain, self.ids).logits):
                raise Unsupported(f"plain transformers' logits do not change with the attention of layer {layer}")
            self.same(edited, expected, f"the logits after editing attention in layer {layer}")
            self.same(assigned, expected, f"the logits after assigning attention in layer {layer}")
        return "edited in place and assigned, as in transformers"

    def heads(self) -> str:
        """Zeroing a head's output gives what plain transformers gives with that slice zeroed by a hook."""
        model = self.model
        layer = next(iter(model.anatomy.attention_layers), None)
        if layer is None:
            raise Unsupported("no layer has attention")
        head = model.anatomy.layers[layer].num_heads - 1
        with torch.no_grad(), model.trace(input_ids=self.ids):
            heads = model.heads_output[layer]
            width = nnsight.save(heads.shape[-1])
            heads[:, :, head] = 0
            ours = nnsight.save(model.logits)
        site = model.anatomy.layers[layer].output_projection
        assert site is not None

        def zero(states: Tensor) -> Tensor:
            states = states.clone()
            states[..., head * width : (head + 1) * width] = 0
            return states

        with reference.replacing_input(site.module, zero):
            expected = reference.run_plain(self.plain, self.ids).logits
        self.same(ours, expected, f"the logits with a head of layer {layer} zeroed")
        return f"zeroing a head of layer {layer}, as in transformers"

    def skip(self) -> str:
        """Skipping a layer gives what plain transformers gives when that layer returns its input."""
        model, layer = self.model, self.layers[len(self.layers) // 2]
        with torch.no_grad(), model.trace(input_ids=self.ids):
            entered = nnsight.save(model.layers_input[layer].clone())
            model.skip_layer(layer)
            ours = nnsight.save(model.logits)
        with reference.replacing_output(model.anatomy.layers[layer].block.module, lambda _: entered):
            expected = reference.run_plain(self.plain, self.ids).logits
        self.same(ours, expected, f"the logits without layer {layer}")
        return f"layer {layer} left out, as in transformers"

    def batch_left(self) -> str:
        """A prompt padded on the left gives what it gives alone."""
        return self._batch(slice(LONG - SHORT, None))

    def batch_right(self) -> str:
        """A prompt padded on the right gives what it gives alone."""
        return self._batch(slice(0, SHORT))

    def _batch(self, kept: slice) -> str:
        model = self.model
        model.require("names")
        short = probe_ids(self.plain, SHORT)
        ids = torch.cat([self.ids, torch.full_like(self.ids, model.pad_id)])
        mask = torch.ones_like(ids)
        mask[1] = 0
        ids[1, kept], mask[1, kept] = short[0], 1
        with torch.no_grad(), model.trace(input_ids=ids, attention_mask=mask):
            logits = nnsight.save(model.logits)
        alone = reference.run_plain(self.plain, short).logits[0]
        difference = _difference(logits[1, kept], alone)
        if difference > _allowed(alone):
            raise Unsupported(f"a padded prompt differs from the prompt alone by up to {difference:.2g}")
        self.same(logits[0], reference.run_plain(self.plain, self.ids).logits[0], "the longest prompt of a batch")
        return f"differs from the prompt alone by at most {difference:.1g}"

    def causal(self) -> str:
        """A later token changes nothing before it; a model for which it does was refused at load."""
        changed = other_ids(self.plain, self.ids, -1)
        before, after = (reference.run_plain(self.plain, ids).logits[:, :-1] for ids in (self.ids, changed))
        difference = _difference(before, after)
        if _is_close(before, after):
            return f"a later token changes no earlier logit by more than {difference:.1g}"
        self.model.require("causal")
        raise DiffersError(f"a later token changes earlier logits by {difference:.2g}, which the check at load missed")

    def same(self, ours: Tensor, theirs: Tensor, what: str) -> None:
        """Raise unless two tensors are equal up to the precision of their dtype."""
        if ours.shape != theirs.shape:
            raise DiffersError(f"{what}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}")
        difference = _difference(ours, theirs)
        if not difference <= _allowed(theirs):
            raise DiffersError(f"{what} differs by {difference:.2g}")


def _disturb(states: Tensor) -> Tensor:
    return states * 0.5 + states.roll(1, dims=-1)


def _look_at_first(pattern: Tensor) -> Tensor:
    pattern[:] = 0
    pattern[..., 0] = 1
    return pattern


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _allowed(like: Tensor) -> float:
    return TOLERANCES.get(like.dtype, 1e-1) * max(float(like.float().abs().max()), 1.0)


def _is_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and _difference(one, other) <= _allowed(other)
