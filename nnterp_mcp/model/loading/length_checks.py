"""Checks beyond the lengths at which the configuration says that a model changes, where such a pass takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.model.loading.verdicts import Check, difference, run_or_reason, tolerance
from nnterp_mcp.model.structure.call_recorder import PROBE_TOKENS, other_ids, probe_ids
from nnterp_mcp.model.structure.context_lengths import Lengths, Mark, is_affordable, lengths_of
from nnterp_mcp.model.traced import TracedModel

BEYOND = 2
"""Tokens by which a text goes beyond a length."""


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
    fewer = (PROBE_TOKENS, length - 1) if model.can("batch") else ()
    kept = next((at for at in fewer if lengths.share(at, length)), length)
    found = run_or_reason(lambda: _run_long(model, length, kept))
    if isinstance(found, str):
        yield Check("batch", False, f"beyond {mark}: {found}")
        return
    batch, alone, before, changed = found
    if lengths.share(length, length) and (apart := difference(batch, alone)) > tolerance(alone):
        yield Check("batch", False, f"beyond {mark} a row of a batch differs from the row alone by up to {apart:.2g}")
    if (apart := difference(before, changed)) > tolerance(before):
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
