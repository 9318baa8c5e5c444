"""What is verified when a model is loaded: two short forward passes, one line for each thing that they show.
(A third for the few models that cannot be padded on the left.)

The first pass runs a long and a short prompt in one padded batch. The second runs the short prompt twice,
unpadded, with attention edited in one of the two rows. Between them they show whether the last layer's lens
is the logits, whether a padded prompt gives what it gives alone, and whether attention can be read and
edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.probe import probe_ids

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer

Run = TypeVar("Run")

LONG, SHORT = 6, 4
"""Tokens of the two prompts."""

LEFT, RIGHT = slice(LONG - SHORT, None), slice(0, SHORT)
"""Where the short prompt is when it is padded on the left, and on the right."""

TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to their largest magnitude, that counts as equal."""


@dataclass(frozen=True)
class Check:
    """One thing that was verified.

    Attributes:
        name: The capability that depends on it: `names`, `lens`, `batch`, `attention`, `attention_edit`.
        passed: Whether it holds.
        detail: What was seen, with numbers; or why it does not hold.
    """

    name: str
    passed: bool
    detail: str


def check_model(model: StandardizedTransformer) -> list[Check]:
    """Verify a loaded model in two short forward passes.

    A check that fails makes `model.require` refuse that capability, with the reason, and nothing else.

    Args:
        model: The model; its attention implementation is what it was before when this returns.

    Returns:
        One entry for each capability, in the order names, lens, batch, attention, attention_edit.
    """
    model.refuse({})
    checks = [_check_names(model)]
    if checks[0].passed:
        padded = _attempt(lambda: _run_padded(model))
        edited = _attempt(lambda: _run_edited(model))
        checks += [
            _judge("lens", lambda: _check_lens(padded, model)),
            _judge("batch", lambda: _check_batch(padded, edited, model)),
            _judge("attention", lambda: _check_attention(edited, model)),
            _judge("attention_edit", lambda: _check_edit(edited, model)),
        ]
    else:
        checks += [Check(name, False, checks[0].detail) for name in ("lens", "batch", "attention", "attention_edit")]
    model.refuse({check.name: f"{model.name}: {check.detail}" for check in checks if not check.passed})
    return checks


@dataclass
class _Padded:
    """The first pass: row 0 the long prompt, row 1 the short one, padded."""

    logits: Float[Tensor, "2 position vocabulary"]
    projected: Float[Tensor, "2 position vocabulary"]


@dataclass
class _Edited:
    """The second pass: the short prompt in both rows, attention edited in row 1."""

    logits: Float[Tensor, "2 position vocabulary"]
    probabilities: Float[Tensor, "2 head query key"] | None
    layer: int | None
    refusal: str = ""


def _run_padded(model: StandardizedTransformer, kept: slice = LEFT) -> _Padded:
    long, short = (probe_ids(model.module, length) for length in (LONG, SHORT))
    ids = torch.cat([long, torch.full_like(long, model.pad_id)])
    mask = torch.ones_like(ids)
    mask[1] = 0
    ids[1, kept], mask[1, kept] = short[0], 1
    with torch.no_grad(), model.trace(input_ids=ids, attention_mask=mask):
        state = model.layers_output[-1].clone()
        projected = nnsight.save(model.project_on_vocab(state))
        logits = nnsight.save(model.logits)
    return _Padded(logits, projected)


def _run_edited(model: StandardizedTransformer) -> _Edited:
    ids = probe_ids(model.module, SHORT).repeat(2, 1)
    readable = [layer.index for layer in model.anatomy.layers if layer.product is not None]
    layer = readable[len(readable) // 2] if readable else None
    before = model.attention
    try:
        if layer is not None and before != "eager":
            model.set_attention("eager")
        if layer is None:
            return _Edited(_logits(model, ids), None, None, "no layer forms attention probabilities")
        return _edit_layer(model, ids, layer)
    finally:
        if before != model.attention:
            model.set_attention(before)  # pyright: ignore[reportArgumentType]


def _logits(model: StandardizedTransformer, ids: Tensor) -> Tensor:
    with torch.no_grad(), model.trace(input_ids=ids):
        logits = nnsight.save(model.logits)
    return logits  # noqa: RET504 - the trace ends before


def _edit_layer(model: StandardizedTransformer, ids: Tensor, layer: int) -> _Edited:
    """In row 1, let the last position read the first position alone."""
    with torch.no_grad(), model.trace(input_ids=ids):
        pattern = model.attention_probabilities[layer]
        clean = nnsight.save(pattern.clone())
        pattern[1, :, -1, :] = 0
        pattern[1, :, -1, 0] = 1
        logits = nnsight.save(model.logits)
    return _Edited(logits, clean, layer)


def _check_names(model: StandardizedTransformer) -> Check:
    anatomy = model.anatomy
    if anatomy.faults:
        return Check("names", False, anatomy.faults[0])
    parts = [f"{anatomy.num_layers} layers, width {anatomy.hidden_size}"]
    attending = len(anatomy.attention_layers)
    parts.append(f"attention in {'all' if attending == anatomy.num_layers else attending or 'none'} of them")
    if anatomy.ln_final is None:
        parts.append("no final norm")
    return Check("names", True, "; ".join(parts))


def _check_lens(padded: _Padded | str, model: StandardizedTransformer) -> Check:
    if isinstance(padded, str):
        return Check("lens", False, padded)
    difference = _difference(padded.projected[0], padded.logits[0])
    allowed = _tolerance(padded.logits[0])
    detail = f"last layer's lens differs from the logits by at most {difference:.1g}"
    return Check("lens", difference <= allowed, detail)


def _check_batch(padded: _Padded | str, edited: _Edited | str, model: StandardizedTransformer) -> Check:
    for run in (padded, edited):
        if isinstance(run, str):
            return Check("batch", False, run)
    assert isinstance(padded, _Padded)
    assert isinstance(edited, _Edited)
    alone = edited.logits[0]
    difference = _difference(padded.logits[1, LEFT], alone)
    detail = f"a prompt padded on the left differs from the prompt alone by at most {difference:.1g} in its logits"
    if difference <= _tolerance(alone):
        return Check("batch", True, detail)
    right = _attempt(lambda: _run_padded(model, RIGHT))
    if not isinstance(right, str) and _difference(right.logits[1, RIGHT], alone) <= _tolerance(alone):
        model.pad_on("right")
        detail += "; padded on the right it gives the same, and text is padded there"
    return Check("batch", False, detail)


def _check_attention(edited: _Edited | str, model: StandardizedTransformer) -> Check:
    if isinstance(edited, str):
        return Check("attention", False, edited)
    if edited.probabilities is None:
        return Check("attention", False, edited.refusal)
    shape, expected = tuple(edited.probabilities.shape[1:]), (model.num_heads, SHORT, SHORT)
    if shape[1:] != expected[1:]:
        return Check("attention", False, f"attention probabilities have shape {shape}, not {expected}")
    sums = edited.probabilities.float().sum(-1)
    low, high = float(sums.min()), float(sums.max())
    allowed = TOLERANCES.get(edited.logits.dtype, 1e-1)
    if low < -allowed or high > 1 + allowed:
        return Check("attention", False, f"rows of attention sum to between {low:.3g} and {high:.3g}")
    if low < 1 - allowed:
        return Check("attention", True, f"rows sum to {low:.2g} to {high:.2g}: an attention sink takes the rest")
    return Check("attention", True, "rows sum to 1")


def _check_edit(edited: _Edited | str, model: StandardizedTransformer) -> Check:
    if isinstance(edited, str):
        return Check("attention_edit", False, edited)
    if edited.layer is None:
        return Check("attention_edit", False, edited.refusal)
    change = _difference(edited.logits[1, -1], edited.logits[0, -1])
    before = _difference(edited.logits[1, :-1], edited.logits[0, :-1])
    if change == 0:
        return Check("attention_edit", False, f"editing attention in layer {edited.layer} changes no logit")
    backwards = "" if before <= _tolerance(edited.logits[0]) else " (and those of earlier ones: it is not causal)"
    return Check(
        "attention_edit",
        True,
        f"editing layer {edited.layer} at the last position changes its logits{backwards}",
    )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _tolerance(logits: Tensor) -> float:
    return TOLERANCES.get(logits.dtype, 1e-1) * max(float(logits.float().abs().max()), 1.0)


def _attempt(run: Callable[[], Run]) -> Run | str:
    """The result of a pass, or the reason for which it failed."""
    try:
        return run()
    except Exception as error:  # whatever else the modelling code raises is the reason
        if says_nothing(error):
            raise
        if isinstance(error, NnterpError):
            return error.message
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _judge(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        if says_nothing(error):
            raise
        return Check(name, False, f"{type(error).__name__}: {error}")
