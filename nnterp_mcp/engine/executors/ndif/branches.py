"""Branches on a served model: the runs that they take from, the shared prefix, then batches of rows, in one request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import BranchPass, Input
from nnterp_mcp.engine.branches import BranchBatch, Branches
from nnterp_mcp.engine.executors.ndif.backend import PASSES, pass_data, require_reduced
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.refusals import not_offered
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import branch_steps
from nnterp_mcp.engine.forward import LogitReduction, Plan
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.observation import Observed, Reference
from nnterp_mcp.engine.prefix_sharing import Sharing
from nnterp_mcp.engine.readouts.reductions import sample_logits
from nnterp_mcp.engine.replacements import TakenFromRun
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.structure.context_lengths import lengths_of

Reduce = Callable[[Sequence[int]], LogitReduction]
"""Given the rows of a batch, returns the reduction of its logits."""

_SAMPLED = 512
"""Logits by which two ways to compute a row are compared."""


def run_served_branches(model: ServedTransformer, branches: Branches) -> Iterator[BranchBatch]:
    """`branches.run_branches` on a served model.

    Raises:
        Unsupported: Logits that are not reduced are asked for.
    """
    texts = _write_texts(branches) if branches.new_tokens else {}
    reduced = branches.reduction is not None or not branches.logits
    require_reduced(model, reduced or bool(texts))
    if not reduced:
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
    rows, written = torch.empty(len(order), 0), [texts.get(row, []) for row in order]
    return BranchBatch(order, rows, written, texts.get(-1, []), found["values"], first, found["numbers"])


class _Awaited(dict[Any, Any]):
    """The reduced logits of a run that the next request on its branches makes; read before, it makes a request itself.

    Attributes:
        run: Makes the run in a request of its own.
        reduction: The reduction.
        compares: It compares with a reference.
    """

    def __init__(self, run: Callable[[], Observed], reduction: LogitReduction | None, compares: bool) -> None:
        super().__init__()
        self.run = run
        self.reduction = reduction
        self.compares = compares

    def __missing__(self, name: Any) -> Any:
        if self:
            raise KeyError(name)
        self.update(self.run().numbers)
        return self[name]


def observe_served(
    model: ServedTransformer,
    given: Input,
    places: Sequence[Place],
    *,
    reduction: LogitReduction | None = None,
    reference: Reference | None = None,
    caching: bool = False,
    for_branches: bool = False,
) -> Observed:
    """`branches.observe` on a served model: the states are returned, unless only branches take them."""
    if for_branches:

        def run() -> Observed:
            return observe_served(model, given, (), reduction=reduction, reference=reference)

        numbers = _Awaited(run, reduction, reference is not None)
        return Observed(given, places, {}, torch.empty(0), None, numbers)
    passes: list[Data] = []
    if reference is not None and reference.given is not given:
        passes.append(_Run(reference.given, carries=["reference"]).data(model))
    itself = reference is not None and reference.given is given
    one = _Run(given, places, reduction, reference is not None, ["reference"] if itself else [])
    found = run_passes(model.connection, [*passes, one.data(model)])[-1]
    states = {place: found["values"][str(place)][0] for place in places}
    return Observed(given, places, states, torch.empty(0), None, found["numbers"])


@dataclass
class _Run:
    """A pass over an input without branches.

    Attributes:
        given: The input.
        places: Hook points whose states are read.
        reduction: What its logits are reduced to.
        compares: The reduction compares with the reference.
        carries: What later passes take of it: `reference`, `source`, `prefix`.
        numbers: Takes what the logits are reduced to.
        length: The tokens that are run; all by default.
    """

    given: Input
    places: Sequence[Place] = ()
    reduction: LogitReduction | None = None
    compares: bool = False
    carries: Sequence[str] = ()
    numbers: Data | None = None
    length: int | None = None

    def data(self, model: ServedTransformer) -> Data:
        """The pass."""
        logits = self.reduction is not None or "reference" in self.carries
        ends = model.last_output
        visitor = BranchPass(self.given, length=self.length, reads=self.places, ends=ends)
        return _pass(model, self, visitor, (1, 1), self.reduction, logits=logits)


def _request(
    model: ServedTransformer,
    branches: Branches,
    batches: Sequence[Sequence[int]],
    sharing: Sharing,
    reduction: Reduce | None,
) -> Iterator[tuple[list[int], BranchPass, Data]]:
    """Some batches in one request: the order of their rows, their pass, and what was read."""
    laid = [branches.lay_out(rows, sharing) for rows in batches]
    runs = _runs(model, branches, max(visitor.first for _, visitor, _ in laid))
    passes = [run.data(model) for run in runs]
    for order, visitor, present in laid:
        asked = None if reduction is None else reduction(order)
        read = _Run(branches.base, branches.reads, compares=branches.reference is not None)
        passes.append(_pass(model, read, visitor, (present, 1 + len(order)), asked, logits=asked is not None))
    found = run_passes(model.connection, passes)
    for run, one in zip(runs, found, strict=False):
        if run.numbers is not None:
            run.numbers |= one["numbers"]
    for (order, visitor, _), one in zip(laid, found[len(runs) :], strict=True):
        values = {place: one["values"][str(place)][1:] for place in branches.reads}
        yield order, visitor, {"numbers": one["numbers"], "values": values}


def _runs(model: ServedTransformer, branches: Branches, prefix: int) -> list[_Run]:
    """The runs of whole inputs that come before batches: of the reference, of a source of states, of the input itself.

    One that is needed for several things is made once; of the input itself only the prefix is run where its logits are
    known, or where keys and values of the whole input may have lost its beginning.
    """
    runs: dict[Input, _Run] = {}
    if branches.reference is not None:
        given = branches.reference.given
        runs[given] = _Run(given, carries=["reference"])
    taken = [edit.change for edit in branches.edits if isinstance(edit.change, TakenFromRun)]
    if taken:
        source = taken[0].run
        run = _await(runs, source)
        run.places, run.carries = list(dict.fromkeys(one.place for one in taken)), [*run.carries, "source"]
    own = branches.own
    if own is not None and isinstance(own.numbers, _Awaited) and not own.numbers:
        run = _await(runs, own)
        if prefix and not lengths_of(model.module).below(len(own.given)):
            run.carries, prefix = [*run.carries, "prefix"], 0
    beginning = [_Run(branches.base, carries=["prefix"], length=prefix)] if prefix else []
    return [*runs.values(), *beginning]


def _await(runs: dict[Input, _Run], observed: Observed) -> _Run:
    """The run of an input, whose logits are reduced to what is awaited of it."""
    run = runs.setdefault(observed.given, _Run(observed.given))
    numbers = observed.numbers
    if isinstance(numbers, _Awaited) and not numbers:
        run.reduction, run.compares, run.numbers = numbers.reduction, numbers.compares, numbers
    return run


def _pass(
    model: ServedTransformer,
    run: _Run,
    visitor: BranchPass,
    rows: tuple[int, int],
    reduction: LogitReduction | None,
    *,
    logits: bool,
) -> Data:
    """A pass over an input and its branches.

    Args:
        run: The input, with what is read of it and carried on.
        visitor: The pass.
        rows: How many rows it begins with, and with how many it ends.
        reduction: What the logits of its rows are reduced to.
        logits: Logits are wanted.
    """
    (present, count), first, columns = rows, visitor.first, visitor.columns
    ids = torch.tensor([run.given.prompt.ids[: first + columns]]).repeat(present, 1)
    inputs: Data = {"input_ids": ids[:, first:], "attention_mask": torch.ones_like(ids), "use_cache": False}
    inputs |= {"logits_to_keep": 1}
    if model.takes_positions:
        inputs["position_ids"] = torch.arange(first, first + columns).repeat(present, 1)
    last = torch.arange(count)
    captured = (last, torch.full_like(last, columns - 1)) if logits else None
    needs_cache = first > 0 or "prefix" in run.carries
    if needs_cache and model.cache_name is None:
        raise not_offered(model.name, "cached keys and values")
    return pass_data(
        model,
        inputs,
        branch_steps(model, visitor, present, captured),
        captures=[str(place) for place in run.places],
        ends=(last, torch.zeros_like(last)) if logits else None,
        reduction=reduction,
        compares=run.compares,
        carries=run.carries,
        cache={"name": model.cache_name, "length": first or None} if needs_cache else None,
    )


def _write_texts(branches: Branches) -> dict[int, list[int]]:
    """The text after each row, and after the unedited input (-1): each is a prompt of its own."""
    base, unedited = branches.base, max(branches.rows) + 1
    rows = [replace(base.prompt, index=row) for row in (*branches.rows, unedited)]
    plan = Plan(base.edits).of_runs([base.prompt] * (unedited + 1), branches.edits)
    work = Workload(rows, plan, branches.batch_tokens)
    written = generate(branches.model, work, max_new_tokens=branches.new_tokens)
    texts = {prompt.index: generation.ids for prompt, generation in zip(rows, written, strict=True)}
    return texts | {-1: texts.pop(unedited)}
