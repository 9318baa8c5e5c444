"""Branches on a served model: the shared prefix, then batches of rows, several in a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import BranchPass, Input
from nnterp_mcp.engine.branches import BranchBatch, Branches
from nnterp_mcp.engine.edits import Edit, EditOfRuns
from nnterp_mcp.engine.executors.ndif.backend import PASSES
from nnterp_mcp.engine.executors.ndif.kernels import read_branches, read_reference
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import branch_steps
from nnterp_mcp.engine.forward import LogitReduction, Plan
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.kv_cache import cache_name
from nnterp_mcp.engine.observation import Observed, Reference
from nnterp_mcp.engine.prefix_sharing import Sharing
from nnterp_mcp.engine.readouts.reductions import sample_logits
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported

Reduce = Callable[[Sequence[int]], LogitReduction]
"""Given the rows of a batch, what its logits are reduced to."""

_SAMPLED = 512
"""Logits by which two ways to compute a row are compared."""


def run_served_branches(model: ServedTransformer, branches: Branches) -> Iterator[BranchBatch]:
    """`branches.run_branches` on a served model.

    Raises:
        Unsupported: Logits that are not reduced are not brought from there.
    """
    texts = _write_texts(branches) if branches.new_tokens else {}
    if branches.reduction is None and branches.logits and not texts:
        raise Unsupported(
            f"whole logits of {model.name} are not brought from NDIF, which serves it",
            "Load the model with backend 'local' for it.",
        )
    if branches.reduction is None and branches.logits:
        yield _batch([*branches.rows], texts, {"numbers": {}, "values": {}}, 0)
        return
    sharing = branches.sharing
    batches = list(branches.fill(sharing))
    for start in range(0, len(batches), PASSES - 1):
        some = batches[start : start + PASSES - 1]
        for order, visitor, found in _request(model, branches, some, sharing, branches.reduction):
            yield _batch(order, texts, found, visitor.first)


def try_served_branches(
    model: ServedTransformer, branches: Branches, rows: Sequence[int], sharing: Sharing
) -> Float[Tensor, "1 row token"]:
    """`branches.try_branches` on a served model: a sample of the logits."""
    sample = LogitReduction(sample_logits, {"count": _SAMPLED})
    ((_, _, found),) = _request(model, branches, [rows], sharing, lambda order: sample)
    return found["numbers"]["logits"][None]


def _batch(order: list[int], texts: Mapping[int, list[int]], found: Data, first: int) -> BranchBatch:
    nothing = torch.empty(0, 0)
    said = [texts.get(row, []) for row in order]
    return BranchBatch(order, nothing, nothing, said, texts.get(-1, []), found["values"], first, found["numbers"])


def observe_served(
    model: ServedTransformer,
    given: Input,
    places: Sequence[Place],
    *,
    reduction: LogitReduction | None = None,
    reference: Reference | None = None,
    caching: bool = False,
) -> Observed:
    """`branches.observe` on a served model: the states come here, and what the logits are reduced to."""
    visitor = BranchPass(given, reads=places)
    one = _pass(model, given, visitor, 1, 1, reduction, places, compares=reference is not None)
    passes = [*_references(model, reference), one]
    found = run_passes(model.connection, passes)[-1]
    states = {place: found["values"][str(place)][0] for place in places}
    return Observed(states, torch.empty(0), None, found["numbers"])


def _request(
    model: ServedTransformer,
    branches: Branches,
    batches: Sequence[Sequence[int]],
    sharing: Sharing,
    reduction: Reduce | None,
) -> Iterator[tuple[list[int], BranchPass, Data]]:
    """Some batches in one request: the order of their rows, their pass, and what was read."""
    laid = [branches.lay_out(rows, sharing) for rows in batches]
    longest = max(visitor.first for _, visitor, _ in laid)
    passes = _references(model, branches.reference)
    passes += [_prefix(model, branches.base, longest)] if longest else []
    for order, visitor, present in laid:
        asked, compares = None if reduction is None else reduction(order), branches.reference is not None
        count = 1 + len(order)
        passes.append(_pass(model, branches.base, visitor, present, count, asked, branches.reads, compares=compares))
    found = run_passes(model.connection, passes)[-len(laid) :]
    for (order, visitor, _), one in zip(laid, found, strict=True):
        values = {place: one["values"][str(place)][1:] for place in branches.reads}
        yield order, visitor, {"numbers": one["numbers"], "values": values}


def _references(model: ServedTransformer, reference: Reference | None) -> list[Data]:
    """The pass over the run with which others are compared."""
    if reference is None:
        return []
    one = _pass(model, reference.given, BranchPass(reference.given), 1, 1, None, (), compares=False, ending=True)
    return [one | {"read": read_reference}]


def _prefix(model: ServedTransformer, base: Input, length: int) -> Data:
    """The pass whose keys and values those after it go on from."""
    visitor = BranchPass(base, length=length, ends=Place("layers_output", model.anatomy.last.index))
    return {
        "inputs": {"input_ids": torch.tensor([base.prompt.ids[:length]]), "logits_to_keep": 1},
        "cache": {"name": cache_name(model.module), "length": None},
        "steps": branch_steps(model, visitor, 1, None),
        "read": read_branches,
        "options": {"reads": [], "reduce": None},
    }


def _pass(
    model: ServedTransformer,
    base: Input,
    visitor: BranchPass,
    present: int,
    count: int,
    asked: LogitReduction | None,
    reads: Sequence[Place],
    *,
    compares: bool,
    ending: bool = False,
) -> Data:
    """A pass over an input and its branches.

    Args:
        model: The model.
        base: The input.
        visitor: The pass.
        present: How many rows it begins with.
        count: How many it ends with.
        asked: What to reduce the logits of its rows to.
        reads: Hook points whose states are read.
        compares: Whether the reduction compares with the reference of the request.
        ending: Whether logits are wanted in any case.
    """
    ids = torch.tensor([base.prompt.ids]).repeat(present, 1)
    inputs: Data = {"input_ids": ids[:, visitor.first :], "attention_mask": torch.ones_like(ids), "use_cache": False}
    if model.takes_positions:
        inputs["position_ids"] = torch.arange(visitor.first, ids.shape[1]).repeat(present, 1)
    rows = torch.arange(count)
    columns = torch.full_like(rows, visitor.columns - 1)
    cached = {"name": cache_name(model.module), "length": visitor.first}
    return {
        "inputs": inputs | {"logits_to_keep": 1},
        "cache": cached if visitor.first else None,
        "steps": branch_steps(model, visitor, present, (rows, columns) if ending or asked is not None else None),
        "read": read_branches,
        "options": {
            "reads": [str(place) for place in reads],
            "head": model.head,
            "rows": rows,
            "columns": torch.zeros_like(columns),
            "compares": compares,
            "reduce": None if asked is None else asked.reduce,
            "options": {} if asked is None else asked.options,
        },
    }


def _write_texts(branches: Branches) -> dict[int, list[int]]:
    """The text after each row, and after the unedited input (-1): each is a prompt of its own."""
    base, unedited = branches.base, max(branches.rows) + 1
    rows = [replace(base.prompt, index=row) for row in (*branches.rows, unedited)]
    owners = [base.prompt] * (unedited + 1)
    edits: dict[Place, list[Edit]] = {
        place: [EditOfRuns(edit, owners) for edit in listed] for place, listed in base.edits.items()
    }
    for edit in branches.edits:
        edits.setdefault(edit.place, []).append(edit)
    work = Workload(rows, Plan(edits), branches.batch_tokens)
    said = generate(branches.model, work, max_new_tokens=branches.new_tokens)
    texts = {prompt.index: generation.ids for prompt, generation in zip(rows, said, strict=True)}
    return texts | {-1: texts.pop(unedited)}
