"""One forward pass as data, on whichever executor: a batch of prompts, edits and captures at hook points, logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.edits import Edit, EditOfRuns, is_skipped
from nnterp_mcp.engine.executors.execution import execute
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.executors.short_passes import Buffers, arguments_of, short_passes, static_inputs
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.interpreter import Data, visit
from nnterp_mcp.engine.readouts.reductions import in_chunks, take_rows
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt
from nnterp_mcp.request.sites import FACTS


@dataclass(frozen=True)
class Plan:
    """Operations resolved against one model and the prompts of one request.

    Attributes:
        edits: The changes at each place, in the order in which they are made there.
        labels: What is in force, one short line for each operation.
    """

    edits: Mapping[Place, Sequence[Edit]] = field(default_factory=dict)
    labels: Sequence[str] = ()

    def __bool__(self) -> bool:
        """True where there is any edit."""
        return bool(self.edits)

    @property
    def needs(self) -> set[Place]:
        """Places whose states a pass has to keep for edits further on."""
        return {place for edits in self.edits.values() for edit in edits for place in edit.needs}

    def of_runs(self, owners: Sequence[EncodedPrompt], further: Iterable[Edit] = ()) -> Plan:
        """The same operations in passes whose rows are runs of the prompts.

        Args:
            owners: The prompt of each run.
            further: Edits of single runs, made after the operations.
        """
        edits: dict[Place, list[Edit]] = {
            place: [EditOfRuns(edit, owners) for edit in listed] for place, listed in self.edits.items()
        }
        for edit in further:
            edits.setdefault(edit.place, []).append(edit)
        return Plan(edits, self.labels)


NOTHING = Plan()
"""No operation in force."""

Reduction = Callable[[Tensor, Data], Any]
"""A function of states (row, position, *head, width) and plain options, from `readouts.reductions`."""


@dataclass(frozen=True)
class Capture:
    """States that a pass reads at a hook point, after the edits there.

    Attributes:
        place: Where.
        reduce: Applied next to the model; what it returns should be small, and no view of what came. None for the very
            tensor with which the model continues, in its own layout, whose gradient can be asked for.
        options: Its options.
    """

    place: Place
    reduce: Reduction | None
    options: Data = field(default_factory=dict)


@dataclass(frozen=True)
class LogitReduction:
    """A reduction of logits next to the model, so that nothing of the vocabulary's size leaves it.

    Attributes:
        reduce: Given logits (entry, *, vocabulary), the options and the slice of entries that these are, returns one
            value or more for each entry, by name.
        options: Its options.
        of_captures: Reduce what the captures hold, each read through final norm and head as if it were the last
            layer's output (entry, capture, vocabulary), instead of the logits of the pass.
        width: How many logits an entry has, where they are not to be formed all at once.
    """

    reduce: Callable[[Tensor, Data, slice], Data]
    options: Data
    of_captures: bool = False
    width: int | None = None


@dataclass(frozen=True)
class Pass:
    """A forward pass as data.

    Attributes:
        batch: The prompts.
        plan: The operations, planned for a request that these prompts belong to.
        captures: What to read on the way.
        logits: The (row, position in the unpadded prompt) pairs at which to compute logits; None for nowhere.
        reduction: What to reduce the logits to.
    """

    batch: Batch
    plan: Plan = NOTHING
    captures: Sequence[Capture] = ()
    logits: Sequence[tuple[int, int]] | None = None
    reduction: LogitReduction | None = None

    @property
    def ends(self) -> tuple[Tensor, Tensor] | None:
        """Rows and columns at which logits are computed."""
        if self.logits is None:
            return None
        rows, columns = [row for row, _ in self.logits], [self.batch.padding[row] + at for row, at in self.logits]
        return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)


@dataclass(frozen=True)
class Captured:
    """The numbers that a forward pass captured.

    Attributes:
        values: What each capture returned, in their order; empty where they were read through the head.
        logits: The logits that were asked for; None if none were, or where they were reduced.
        numbers: What the logits were reduced to.
    """

    values: list[Any]
    logits: Float[Tensor, "entry vocabulary"] | None = None
    numbers: Data = field(default_factory=dict)


def forward(
    model: StandardizedTransformer,
    batch: Batch,
    plan: Plan = NOTHING,
    captures: Sequence[Capture] = (),
    logits: Sequence[tuple[int, int]] | None = None,
    reduction: LogitReduction | None = None,
    *,
    gradients: bool = False,
) -> Captured:
    """Runs a batch of prompts.

    Edits act in the order in which the model runs. Only the hook points that are edited or read are touched, the pass
    ends at the last of them, and the head runs at the positions asked for alone.

    Args:
        batch: The prompts.
        plan: The operations, planned for a request that these prompts belong to.
        captures: What to read on the way.
        logits: The (row, position in the unpadded prompt) pairs at which to compute logits.
        reduction: What to reduce the logits to.
        gradients: Whether autograd records the pass.

    Raises:
        InvalidRequest: A vector or a neuron does not fit the states at its place.
        Unsupported: The model does not have one of the places, or the executor cannot do it.
    """
    return run_pass(model, Pass(batch, plan, captures, logits, reduction), gradients)


@executed_remotely
def run_pass(model: StandardizedTransformer, work: Pass, gradients: bool = False) -> Captured:
    """Runs a pass with hooks, or in a trace where hooks do not reach."""
    with torch.inference_mode(not gradients), attention_for(model, work.plan, work.captures):
        found = None if gradients else _run_short(model, work)
        if found is None:
            inputs = {**work.batch.inputs, "use_cache": False}
            found = run(model, inputs, Window.over(work.batch), work.plan, work.captures, work.ends)
        if work.reduction is None:
            return found
        asked = work.reduction
        if asked.of_captures:
            states = torch.stack([value.to(model.device) for value in found.values], dim=1)
            numbers = in_chunks(states, model.project_on_vocab, asked.reduce, asked.options, asked.width)
            return Captured([], None, numbers)
        assert found.logits is not None
        numbers = in_chunks(found.logits, None, asked.reduce, asked.options, asked.width)
        return Captured(found.values, None, numbers)


def _run_short(model: StandardizedTransformer, work: Pass) -> Captured | None:
    """The pass on buffers that a graph replays; None where it is long, edits something, or reads more than entries."""
    if work.plan or any(capture.reduce is not take_rows for capture in work.captures):
        return None
    ids, mask = work.batch.inputs["input_ids"], work.batch.inputs["attention_mask"]
    passes = short_passes(model, *ids.shape)
    if passes is None:
        return None
    entries = [(capture.options["rows"], capture.options["columns"]) for capture in work.captures]
    entries += [] if work.ends is None else [work.ends]
    keys = [(id(rows), id(columns)) for rows, columns in entries]
    different = list(dict.fromkeys(keys))  # layers are mostly read at the same entries
    which = [different.index(key) for key in keys]
    given = static_inputs(model, ids, mask)
    for number, (rows, columns) in zip(which, entries, strict=True):
        given |= {f"rows {number}": rows.to(ids.device), f"columns {number}": columns.to(ids.device)}

    def compute(buffers: Buffers) -> list[Tensor]:
        index = [(buffers[f"rows {number}"], buffers[f"columns {number}"]) for number in which]
        captures = [
            Capture(capture.place, take_rows, {"rows": rows, "columns": columns})
            for capture, (rows, columns) in zip(work.captures, index, strict=False)
        ]
        ends = None if work.ends is None else index[-1]
        found = run(model, arguments_of(buffers), Window.over(work.batch), NOTHING, captures, ends)
        return [*found.values, *([] if found.logits is None else [found.logits])]

    key = (model.attention, *which, *(capture.place for capture in work.captures), work.logits is None)
    made = passes.run(model, key, given, compute)
    return Captured(made, None) if work.ends is None else Captured(made[:-1], made[-1])


@executed_remotely
def most_returned(model: StandardizedTransformer) -> float:
    """The most numbers that passes should return unreduced; without a limit where the model computes here."""
    return math.inf


def attention_for(
    model: StandardizedTransformer, plan: Plan, captures: Sequence[Capture] = ()
) -> AbstractContextManager[None]:
    """While this lasts, the model forms attention probabilities if the plan or a capture needs them."""
    places = [*plan.edits, *(capture.place for capture in captures)]
    needed = any(place.site == "attention_probabilities" for place in places)
    return model.attending_eagerly() if needed else nullcontext()


def run(
    model: StandardizedTransformer,
    inputs: dict[str, Any],
    window: Window,
    plan: Plan,
    captures: Sequence[Capture],
    logits: tuple[Tensor, Tensor] | None,
) -> Captured:
    """The pass itself, for inputs that a caller has made: whole prompts, or one more token on cached keys and values.

    Args:
        model: The model, with the attention implementation that the plan needs.
        inputs: The arguments of its forward pass.
        window: The columns that the inputs stand for.
        plan: The operations.
        captures: What to read on the way.
        logits: The rows and the columns of the inputs at which to compute logits.
    """
    at_end: Sequence[Capture] = ()
    if logits is not None and model.can("lens"):
        rows, columns = logits
        last = Place("layers_output", model.anatomy.last.index)
        at_end = [Capture(last, take_rows, {"rows": rows, "columns": columns})]
    visitor = PlannedPass(window, plan, [*captures, *at_end])
    if logits is None or at_end:
        execute(model, inputs, visitor)
        values = visitor.values
        states = values.pop() if at_end else None
        return Captured(values, None if states is None else model.project_on_vocab(states))
    whole = execute(model, inputs, visitor, lambda made: made[logits])
    return Captured(visitor.values, whole)


def skipped_layers(edits: Mapping[Place, Sequence[Edit]], window: Window) -> list[int]:
    """Layers whose output all rows of a pass replace with the layer's input."""
    return [
        place.layer
        for place, listed in edits.items()
        if place.layer is not None and place.site == "layers_output" and is_skipped(listed, window)
    ]


class PlannedPass:
    """Visits the hook points of a pass: resolves the edits there, and has the interpreter apply and capture."""

    def __init__(self, window: Window, plan: Plan, captures: Sequence[Capture]) -> None:
        self.places = in_order([*plan.edits, *plan.needs, *(capture.place for capture in captures)])
        self.window = window
        self._plan = plan
        self._captures = captures
        self._seen: Data = {}
        self._captured: Data = {}

    @property
    def skipped(self) -> list[int]:
        """Layers that operations skip at all positions of the pass."""
        return skipped_layers(self._plan.edits, self.window)

    @property
    def values(self) -> list[Any]:
        """The value of each capture, in their order."""
        return [self._captured[number] for number in range(len(self._captures))]

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Makes the edits of a hook point, then the captures."""
        step = step_at(place, value.shape, value.device, self.window, self._plan, self._captures)
        return visit(value, step, self._seen, self._captured)


def step_at(
    place: Place,
    shape: Sequence[int],
    device: torch.device,
    window: Window,
    plan: Plan,
    captures: Sequence[Capture] = (),
) -> Data:
    """The interpreter's step at one hook point of a pass.

    Args:
        place: The hook point.
        shape: The shape of the states there, in the model's own layout.
        device: Where they are.
        window: The columns that the pass computes.
        plan: The operations.
        captures: All that the pass captures; those are named by their numbers.
    """
    edits = [edit.resolve(window, shape, device) for edit in plan.edits.get(place, ())]
    return {
        "edits": [edit for edit in edits if edit is not None],
        "branch": None,
        "needed": str(place) if place in plan.needs else None,
        "heads_first": FACTS[place.site].heads_first,
        "captures": [
            (number, capture.reduce, capture.options)
            for number, capture in enumerate(captures)
            if capture.place == place
        ],
    }
