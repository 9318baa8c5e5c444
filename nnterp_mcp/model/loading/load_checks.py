"""The checks of a loaded model: one pass beside the one in which its parts were found, and one layer run again.

The pass runs a long prompt and a short one, with which the long one begins, in a batch padded on the left. The lens of
the last layer must equal the logits; the short prompt must give what it gave alone, unpadded, when the parts were
found; and the tokens that follow in the long one must change nothing before them. One layer is run again on the input
recorded then, as it was and with its attention edited. The same is tested beyond the lengths at which the configuration
says that the model changes, where a pass of that length takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.model.loading.length_checks import check_lengths
from nnterp_mcp.model.loading.verdicts import TOLERANCES, Check, difference, run_or_reason, tolerance
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.structure.anatomy import LayerAnatomy
from nnterp_mcp.model.structure.attention_backend import probe_eagerly
from nnterp_mcp.model.structure.attention_taps import taps_of
from nnterp_mcp.model.structure.call_recorder import PROBE_TOKENS, ModuleCall, Tape, other_ids, probe_ids
from nnterp_mcp.model.traced import TracedModel

LONG, SHORT = 7, PROBE_TOKENS
"""Tokens of the two prompts."""

LEFT, RIGHT = slice(LONG - SHORT, None), slice(0, SHORT)
"""The columns of the short prompt, padded on the left and on the right."""


def check_model(model: TracedModel, tape: Tape | None = None) -> list[Check]:
    """Verify a loaded model.

    A check that fails makes `model.require` refuse that capability, with the reason, and nothing else.

    Args:
        model: The model; its attention implementation is what it was before when this returns.
        tape: The recorded pass in which its parts were found; recorded anew if left out.

    Returns:
        One entry for each capability, in the order names, lens, batch, causal, attention, attention_edit; and one for
        lengths beyond which the model computes otherwise, if its configuration names any.
    """
    model.refuse({})
    checks = [_check_names(model)]
    if checks[0].passed:
        with model.standing_down():
            alone = tape or run_or_reason(lambda: probe_eagerly(model.module))
        padded = run_or_reason(lambda: _run_padded(model))
        edited = alone if isinstance(alone, str) else run_or_reason(lambda tape=alone: _edit_middle(model, tape))
        checks += [
            _judge("lens", lambda: _check_lens(padded)),
            batch := _judge("batch", lambda: _check_batch(padded, alone, model)),
            _judge("causal", lambda: _check_causal(padded if batch.passed else _plainly(model))),
            _judge("attention", lambda: _check_attention(edited, model)),
            _judge("attention_edit", lambda: _check_edit(edited)),
        ]
    else:
        checks += [Check(name, False, checks[0].detail) for name in ("lens", "batch", "attention", "attention_edit")]
        checks.append(_judge("causal", lambda: _check_causal(_plainly(model))))
    model.refuse({check.name: f"{model.name}: {check.detail}" for check in checks if not check.passed})
    return [*checks, *check_lengths(model)] if checks[0].passed else checks


def check_attention(model: TracedModel, layer: int) -> list[Check]:
    """Verify that attention probabilities of one layer can be read and edited, as attention is computed now.

    Args:
        model: The model. What its `require` refuses stays as it is.
        layer: The layer.

    Returns:
        An entry for reading them, and one for editing them.
    """
    edited = run_or_reason(lambda: _edit_layer(model, layer))
    return [
        _judge("attention", lambda: _check_attention(edited, model)),
        _judge("attention_edit", lambda: _check_edit(edited)),
    ]


@dataclass
class _Padded:
    """Logits of the long prompt (row 0) and of the short one, padded (row 1), and the last layer's lens at row 0."""

    logits: Float[Tensor, "2 position vocabulary"]
    projected: Float[Tensor, "position vocabulary"]
    kept: slice

    @property
    def short(self) -> Float[Tensor, "position vocabulary"]:
        return self.logits[1, self.kept]

    @property
    def begun(self) -> Float[Tensor, "position vocabulary"]:
        """The logits at the short prompt's tokens where others follow."""
        return self.logits[0, :SHORT]


@dataclass
class _Edited:
    """A layer whose attention was edited at the last position.

    Attributes:
        layer: The layer; None where there is none whose attention could be edited.
        probabilities: Its probabilities before the edit.
        change: The largest change of its output at the last position, or of the logits.
        refusal: The reason why there is no layer.
    """

    layer: int | None = None
    probabilities: Float[Tensor, "row head query key"] | None = None
    change: float = 0.0
    refusal: str = ""


def _run_padded(model: TracedModel, kept: slice = LEFT) -> _Padded:
    ids, mask = _padded_ids(model, kept)
    with torch.no_grad(), model.trace(input_ids=ids, attention_mask=mask):
        projected = nnsight.save(model.project_on_vocab(model.layers_output[-1][0].clone()))
        logits = nnsight.save(model.logits)
    return _Padded(logits, projected, kept)


def _padded_ids(model: TracedModel, kept: slice) -> tuple[Int[Tensor, "2 position"], Int[Tensor, "2 position"]]:
    short = probe_ids(model.module, SHORT)
    ids = torch.cat([_longer(model, short), torch.full((1, LONG), model.pad_id, device=short.device)])
    mask = torch.ones_like(ids)
    mask[1] = 0
    ids[1, kept], mask[1, kept] = short[0], 1
    return ids, mask


def _longer(model: TracedModel, short: Int[Tensor, "1 position"]) -> Int[Tensor, "1 longer"]:
    """The short prompt with more tokens behind it."""
    more = other_ids(model.module, short[:, : LONG - SHORT], slice(None))
    return torch.cat([short, more], dim=1)


def _edit_middle(model: TracedModel, tape: Tape) -> _Edited:
    """Edits attention in the layer in the middle of those that form probabilities."""
    readable = [layer for layer in model.anatomy.layers if layer.product is not None]
    if not readable:
        return _Edited(refusal="no layer forms attention probabilities")
    layer, before = readable[len(readable) // 2], model.attention
    try:
        if before != "eager":
            model.set_attention("eager")
        return _edit_recorded(model, layer, tape) or _edit_layer(model, layer.index)
    finally:
        if before != model.attention:
            model.set_attention(before)  # pyright: ignore[reportArgumentType]


def _edit_recorded(model: TracedModel, layer: LayerAnatomy, tape: Tape) -> _Edited | None:
    """Runs a layer again on its recorded input, as it was and edited; None where the first gives another output."""
    call, seen = tape.of(layer.block.module), list[Tensor]()
    assert call is not None
    try:
        output = _run_again(model, layer, call, lambda pattern: seen.append(pattern) or pattern)
        if not seen or not torch.equal(output, layer.block.read_output(call.output)):
            return None
        edited = _run_again(model, layer, call, _look_at_first)
    except Exception as error:
        if says_nothing(error):
            raise
        return None
    return _Edited(layer.index, seen[0], difference(edited[..., -1, :], output[..., -1, :]))


@torch.no_grad()
def _run_again(
    model: TracedModel, layer: LayerAnatomy, call: ModuleCall, tap: Callable[[Tensor], Tensor]
) -> Float[Tensor, "1 position hidden"]:
    assert layer.core is not None
    taps = taps_of(layer.core.module)
    assert taps is not None
    taps["attention_probabilities"] = tap
    try:
        with model.standing_down():
            return layer.block.read_output(call.module(*call.args, **call.kwargs))
    finally:
        taps.clear()


def _look_at_first(pattern: Float[Tensor, "row head query key"]) -> Float[Tensor, "row head query key"]:
    edited = pattern.clone()
    edited[:, :, -1, :] = 0
    edited[:, :, -1, 0] = 1
    return edited


@torch.no_grad()
def _plainly(model: TracedModel) -> _Padded | str:
    """The short prompt and the long one, each alone and unpadded, on the plain model."""

    def run() -> _Padded:
        short = probe_ids(model.module, SHORT)
        begun, whole = (model.module(input_ids=ids, use_cache=False).logits for ids in (short, _longer(model, short)))
        return _Padded(torch.cat([whole[:, :SHORT], begun]), begun[0], slice(None))

    with model.standing_down():
        return run_or_reason(run)


def _edit_layer(model: TracedModel, layer: int) -> _Edited:
    """In row 1 of a whole pass, let the last position read the first position alone."""
    ids = probe_ids(model.module, SHORT)
    with torch.no_grad(), model.trace(input_ids=torch.cat([ids, ids])):
        pattern = model.attention_probabilities[layer]
        clean = nnsight.save(pattern.clone())
        pattern[1] = _look_at_first(pattern[1:])[0]
        logits = nnsight.save(model.logits)
    return _Edited(layer, clean, difference(logits[1, -1], logits[0, -1]))


def _check_names(model: TracedModel) -> Check:
    anatomy = model.anatomy
    if anatomy.faults:
        return Check("names", False, anatomy.faults[0])
    parts = [f"{anatomy.num_layers} layers, width {anatomy.hidden_size}"]
    attending = len(anatomy.attention_layers)
    parts.append(f"attention in {'all' if attending == anatomy.num_layers else attending or 'none'} of them")
    if anatomy.ln_final is None:
        parts.append("no final norm")
    foreign = len(model.tokenizer) - model.embedded  # pyright: ignore[reportArgumentType]
    if foreign > 0:
        parts.append(f"{foreign} tokens of its tokenizer from {model.embedded} on have no embedding, and are refused")
    return Check("names", True, "; ".join(parts))


def _check_lens(padded: _Padded | str) -> Check:
    if isinstance(padded, str):
        return Check("lens", False, padded)
    apart = difference(padded.projected, padded.logits[0])
    return Check(
        "lens",
        apart <= tolerance(padded.logits[0]),
        f"last layer's lens differs from the logits by at most {apart:.1g}",
    )


def _check_batch(padded: _Padded | str, tape: Tape | str, model: TracedModel) -> Check:
    for run in (padded, tape):
        if isinstance(run, str):
            return Check("batch", False, run)
    assert isinstance(padded, _Padded)
    assert isinstance(tape, Tape)
    alone = tape.logits[0]
    apart = difference(padded.short, alone)
    detail = f"a prompt padded on the left differs from the prompt alone by at most {apart:.1g} in its logits"
    if apart <= tolerance(alone):
        return Check("batch", True, detail)
    right = run_or_reason(lambda: _run_padded(model, RIGHT))
    if not isinstance(right, str) and difference(right.short, alone) <= tolerance(alone):
        model.pad_on("right")
        detail += "; padded on the right it gives the same, and text is padded there"
    return Check("batch", False, detail)


def _check_causal(padded: _Padded | str) -> Check:
    if isinstance(padded, str):
        return Check("causal", False, padded)
    apart = difference(padded.begun, padded.short)
    if apart <= tolerance(padded.short):
        return Check("causal", True, f"a later token changes no earlier logit by more than {apart:.1g}")
    return Check(
        "causal",
        False,
        f"a later token changes earlier logits by up to {apart:.2g}: it reads text in both directions, its logits "
        "are no predictions of the next token, and it does not generate text",
    )


def _check_attention(edited: _Edited | str, model: TracedModel) -> Check:
    if isinstance(edited, str):
        return Check("attention", False, edited)
    if edited.probabilities is None:
        return Check("attention", False, edited.refusal)
    shape, expected = tuple(edited.probabilities.shape[1:]), (model.num_heads, SHORT, SHORT)
    if shape[1:] != expected[1:]:
        return Check("attention", False, f"attention probabilities have shape {shape}, not {expected}")
    sums = edited.probabilities.float().sum(-1)
    low, high = float(sums.min()), float(sums.max())
    allowed = TOLERANCES.get(edited.probabilities.dtype, 1e-1)
    if low < -allowed or high > 1 + allowed:
        return Check("attention", False, f"rows of attention sum to between {low:.3g} and {high:.3g}")
    if low < 1 - allowed:
        return Check("attention", True, f"rows sum to {low:.2g} to {high:.2g}: an attention sink takes the rest")
    return Check("attention", True, "rows sum to 1")


def _check_edit(edited: _Edited | str) -> Check:
    if isinstance(edited, str) or edited.layer is None:
        return Check("attention_edit", False, edited if isinstance(edited, str) else edited.refusal)
    if edited.change == 0:
        return Check("attention_edit", False, f"editing attention in layer {edited.layer} changes nothing")
    return Check("attention_edit", True, f"editing layer {edited.layer} at the last position changes its output")


def _judge(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        if says_nothing(error):
            raise
        return Check(name, False, f"{type(error).__name__}: {error}")
