"""The checks of a loaded model: two short forward passes, and a third for models that cannot be padded on the left.

The first pass runs a long and a short prompt in one padded batch. The second runs the short prompt three times,
unpadded: unchanged, with attention edited, and with another last token. They test that the last layer's lens equals
the logits, that padding changes no result, that attention can be read and edited, and that no token affects earlier
positions. The same is tested beyond the lengths at which the configuration says that the model changes, where a pass of
that length takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.structure.call_recorder import other_ids, probe_ids
from nnterp_mcp.model.structure.context_lengths import Lengths, Mark, is_affordable, lengths_of
from nnterp_mcp.model.traced import TracedModel

Run = TypeVar("Run")

LONG, SHORT = 6, 4
"""Tokens of the two prompts."""

BEYOND = 2
"""Tokens by which a text goes beyond a length."""

LEFT, RIGHT = slice(LONG - SHORT, None), slice(0, SHORT)
"""The columns of the short prompt, padded on the left and on the right."""

TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to their largest magnitude, that counts as equal."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: The capability that it decides: `names`, `lens`, `batch`, `causal`, `attention`, `attention_edit`; and
            `lengths`, where the configuration names some.
        passed: True if the capability works.
        detail: The measured numbers, or the reason of the failure.
    """

    name: str
    passed: bool
    detail: str


def check_model(model: TracedModel) -> list[Check]:
    """Verify a loaded model in two short forward passes.

    A check that fails makes `model.require` refuse that capability, with the reason, and nothing else.

    Args:
        model: The model; its attention implementation is what it was before when this returns.

    Returns:
        One entry for each capability, in the order names, lens, batch, causal, attention, attention_edit; and one for
        lengths beyond which the model computes otherwise, if its configuration names any.
    """
    model.refuse({})
    checks = [_check_names(model)]
    if checks[0].passed:
        padded = _attempt(lambda: _run_padded(model))
        edited = _attempt(lambda: _run_edited(model))
        checks += [
            _judge("lens", lambda: _check_lens(padded, model)),
            _judge("batch", lambda: _check_batch(padded, edited, model)),
            _judge("causal", lambda: _check_causal(_plainly(model) if isinstance(edited, str) else edited)),
            _judge("attention", lambda: _check_attention(edited, model)),
            _judge("attention_edit", lambda: _check_edit(edited, model)),
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
    edited = _attempt(lambda: _edit_layer(model, _short_rows(model), layer))
    return [
        _judge("attention", lambda: _check_attention(edited, model)),
        _judge("attention_edit", lambda: _check_edit(edited, model)),
    ]


@dataclass
class _Padded:
    """The first pass: row 0 the long prompt, row 1 the short one, padded."""

    logits: Float[Tensor, "2 position vocabulary"]
    projected: Float[Tensor, "2 position vocabulary"]


@dataclass
class _Edited:
    """The second pass: the short prompt in each row, attention edited in row 1, the last token replaced in row 2."""

    logits: Float[Tensor, "3 position vocabulary"]
    probabilities: Float[Tensor, "3 head query key"] | None
    layer: int | None
    refusal: str = ""


def _run_padded(model: TracedModel, kept: slice = LEFT) -> _Padded:
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


def _run_edited(model: TracedModel) -> _Edited:
    ids = _short_rows(model)
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


def _short_rows(model: TracedModel) -> Int[Tensor, "3 position"]:
    ids = probe_ids(model.module, SHORT)
    return torch.cat([ids, ids, other_ids(model.module, ids, -1)])


@torch.no_grad()
def _plainly(model: TracedModel) -> _Edited | str:
    """The second pass on the plain model, for one that allows neither names nor edits."""
    with model.standing_down():
        found = _attempt(lambda: model.module(input_ids=_short_rows(model), use_cache=False).logits)
    return found if isinstance(found, str) else _Edited(found, None, None)


def _logits(model: TracedModel, ids: Tensor) -> Tensor:
    with torch.no_grad(), model.trace(input_ids=ids):
        logits = nnsight.save(model.logits)
    return logits  # noqa: RET504 - the trace ends before


def _edit_layer(model: TracedModel, ids: Tensor, layer: int) -> _Edited:
    """In row 1, let the last position read the first position alone."""
    with torch.no_grad(), model.trace(input_ids=ids):
        pattern = model.attention_probabilities[layer]
        clean = nnsight.save(pattern.clone())
        pattern[1, :, -1, :] = 0
        pattern[1, :, -1, 0] = 1
        logits = nnsight.save(model.logits)
    return _Edited(logits, clean, layer)


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


def _check_lens(padded: _Padded | str, model: TracedModel) -> Check:
    if isinstance(padded, str):
        return Check("lens", False, padded)
    difference = _difference(padded.projected[0], padded.logits[0])
    allowed = _tolerance(padded.logits[0])
    detail = f"last layer's lens differs from the logits by at most {difference:.1g}"
    return Check("lens", difference <= allowed, detail)


def _check_batch(padded: _Padded | str, edited: _Edited | str, model: TracedModel) -> Check:
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


def _check_causal(edited: _Edited | str) -> Check:
    if isinstance(edited, str):
        return Check("causal", False, edited)
    difference = _difference(edited.logits[2, :-1], edited.logits[0, :-1])
    if difference <= _tolerance(edited.logits[0]):
        return Check("causal", True, f"a later token changes no earlier logit by more than {difference:.1g}")
    return Check(
        "causal",
        False,
        f"a later token changes earlier logits by up to {difference:.2g}: it reads text in both directions, its logits "
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
    allowed = TOLERANCES.get(edited.logits.dtype, 1e-1)
    if low < -allowed or high > 1 + allowed:
        return Check("attention", False, f"rows of attention sum to between {low:.3g} and {high:.3g}")
    if low < 1 - allowed:
        return Check("attention", True, f"rows sum to {low:.2g} to {high:.2g}: an attention sink takes the rest")
    return Check("attention", True, "rows sum to 1")


def _check_edit(edited: _Edited | str, model: TracedModel) -> Check:
    if isinstance(edited, str):
        return Check("attention_edit", False, edited)
    if edited.layer is None:
        return Check("attention_edit", False, edited.refusal)
    change = _difference(edited.logits[1, -1], edited.logits[0, -1])
    if change == 0:
        return Check("attention_edit", False, f"editing attention in layer {edited.layer} changes no logit")
    return Check("attention_edit", True, f"editing layer {edited.layer} at the last position changes its logits")


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.detach().float() - other.detach().float()).abs().max())


def _tolerance(logits: Tensor) -> float:
    return TOLERANCES.get(logits.dtype, 1e-1) * max(float(logits.float().abs().max()), 1.0)


def check_lengths(model: TracedModel) -> list[Check]:
    """Verify that beyond its windows, switches and index sizes a model reads rows of a batch as it reads them alone.

    What fails makes `model.require` refuse `batch` or `causal`, as it would at short lengths.

    Args:
        model: The model, whose standard names were verified.

    Returns:
        One check that covers each length short enough to test and lists the others; none where the configuration
        names no such length.
    """
    lengths = lengths_of(model.module)
    marks = lengths.below((model.context or 1 << 62) + 1 - BEYOND)
    seen = [mark for mark in marks if is_affordable(model.module, 4 * (mark.length + BEYOND))]
    unseen = [str(mark) for mark in marks if mark not in seen]
    faults = [fault for mark in seen for fault in _judge_length(model, mark, lengths)]
    said = [fault.detail for fault in faults]
    if seen and not faults:
        said.append(f"beyond {', '.join(map(str, seen))} a row of a batch gives what it gives alone")
    said += [f"not looked at beyond {', '.join(unseen)}: too long for a check"] if unseen else []
    for fault in faults:
        model.refuse({fault.name: f"{model.name}: {fault.detail}", **model.refusals})
    return [Check("lengths", not faults, "; ".join(said))] if said else []


def _judge_length(model: TracedModel, mark: Mark, lengths: Lengths) -> Iterator[Check]:
    """The capabilities that fail beyond a length, as failed checks."""
    length = mark.length + BEYOND
    fewer = (SHORT, length - 1) if model.can("batch") else ()
    kept = next((at for at in fewer if lengths.share(at, length)), length)
    found = _attempt(lambda: _run_long(model, length, kept))
    if isinstance(found, str):
        yield Check("batch", False, f"beyond {mark}: {found}")
        return
    batch, alone, before, changed = found
    if lengths.share(length, length) and (apart := _difference(batch, alone)) > _tolerance(alone):
        yield Check("batch", False, f"beyond {mark} a row of a batch differs from the row alone by up to {apart:.2g}")
    if (apart := _difference(before, changed)) > _tolerance(before):
        yield Check("causal", False, f"beyond {mark} a later token changes what comes before it by up to {apart:.2g}")


def _run_long(model: TracedModel, length: int, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs a long row, a copy with one late token changed, and a padded row of `kept` tokens; then the last alone.

    Returns:
        The final outputs of the padded row and of the row alone; then the outputs before the changed token, without and
        with the change.
    """
    long = probe_ids(model.module, length)
    short = probe_ids(model.module, kept)
    ids = torch.cat([long, other_ids(model.module, long, -2), torch.full_like(long, model.pad_id)])
    mask = torch.ones_like(ids)
    ids[2, -kept:], mask[2, :-kept] = short[0], 0
    batch = _ends(model, ids, mask)
    alone = _ends(model, short, torch.ones_like(short))
    return batch[2, -1:], alone[0, -1:], batch[0, :-2], batch[1, :-2]


@torch.no_grad()
def _ends(model: TracedModel, ids: Tensor, mask: Tensor) -> Float[Tensor, "row position vocabulary"]:
    """Logits of the last few positions only."""
    last = model.anatomy.last.index
    with model.trace(input_ids=ids, attention_mask=mask, use_cache=False) as tracer:
        states = nnsight.save(model.layers_output[last][:, -4:].clone())
        tracer.stop()
    return model.project_on_vocab(states) if model.can("lens") else states


def _attempt(run: Callable[[], Run]) -> Run | str:
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
