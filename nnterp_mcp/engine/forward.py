"""One forward pass with operations in force, reading what is asked for on the way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.edits import Edit, Seen
from nnterp_mcp.engine.executors.execution import execute
from nnterp_mcp.engine.hook_points import Place, by_position, in_order
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.attention_backend import switch_attention
from nnterp_mcp.model.text.tokenization import Batch


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
        """Whether anything is in force."""
        return bool(self.edits)

    @property
    def needs(self) -> set[Place]:
        """Places whose states a pass has to keep for edits further on."""
        return {place for edits in self.edits.values() for edit in edits for place in edit.needs}


NOTHING = Plan()
"""No operation in force."""


@dataclass(frozen=True)
class Read:
    """What to take from a place, after the edits there.

    Attributes:
        place: Where.
        reduce: Applied beside the model to what is there, in the layout of the model's accessor of that name (padding
            included); what it returns is kept, so it should be small, and no view of what came.
    """

    place: Place
    reduce: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Pass:
    """What came of a forward pass.

    Attributes:
        reads: What each read returned, in the order of the reads.
        logits: The logits at the positions asked for; None if none were.
    """

    reads: list[Any]
    logits: Float[Tensor, "wanted vocabulary"] | None


@runs_elsewhere
def forward(
    model: StandardizedTransformer,
    batch: Batch,
    plan: Plan = NOTHING,
    reads: Sequence[Read] = (),
    logits: Sequence[tuple[int, int]] | None = None,
    *,
    gradients: bool = False,
) -> Pass:
    """Runs a batch of prompts with operations in force.

    Edits act in the order in which the model runs. Only the places that are edited or read are touched, the pass ends
    at the last of them, and the head runs at the positions asked for alone.

    Args:
        model: The model.
        batch: The prompts.
        plan: The operations, planned for a request that these prompts belong to.
        reads: What to take on the way.
        logits: The (row, position in the unpadded prompt) pairs at which to compute logits.
        gradients: Whether autograd records the pass.

    Raises:
        InvalidRequest: A vector or a neuron does not fit the states at its place.
        Unsupported: The model does not have one of the places.
    """
    rows = torch.tensor([row for row, _ in logits or ()], dtype=torch.long)
    columns = torch.tensor([batch.padding[row] + at for row, at in logits or ()], dtype=torch.long)
    wanted = None if logits is None else (rows, columns)
    with torch.inference_mode(not gradients), attention_for(model, plan, reads):
        return run(model, {**batch.inputs, "use_cache": False}, Window.over(batch), plan, reads, wanted)


@contextmanager
def attention_for(model: StandardizedTransformer, plan: Plan, reads: Sequence[Read] = ()) -> Generator[None]:
    """While this lasts, the model forms attention probabilities if the plan or a read needs them."""
    places = [*plan.edits, *(read.place for read in reads)]
    before = model.attention
    if before == "eager" or all(place.site != "attention_probabilities" for place in places):
        yield
        return
    model.set_attention("eager")
    try:
        yield
    finally:
        switch_attention(model.module, before)


def run(
    model: StandardizedTransformer,
    inputs: dict[str, Any],
    window: Window,
    plan: Plan,
    reads: Sequence[Read],
    logits: tuple[Tensor, Tensor] | None,
) -> Pass:
    """The pass itself, for inputs that a caller has made: whole prompts, or one more token on cached keys and values.

    Args:
        model: The model, with the attention implementation that the plan needs.
        inputs: The arguments of its forward pass.
        window: The columns that the inputs stand for.
        plan: The operations.
        reads: What to take on the way.
        logits: The rows and the columns of the inputs at which to compute logits.
    """
    at_end: Sequence[Read] = ()
    if logits is not None and model.can("lens"):
        rows, columns = logits
        at_end = [Read(Place("layers_output", model.anatomy.last.index), lambda state: state[rows, columns])]
    walk = PlannedPass(window, plan, [*reads, *at_end])
    if logits is None or at_end:
        execute(model, inputs, walk)
        taken = walk.taken
        states = taken.pop() if at_end else None
        return Pass(taken, None if states is None else model.project_on_vocab(states))
    whole = execute(model, inputs, walk, lambda made: made[logits])
    return Pass(walk.taken, whole)


class PlannedPass:
    """Makes the edits of a plan and the reads, place by place."""

    def __init__(self, window: Window, plan: Plan, reads: Sequence[Read]) -> None:
        self.places = in_order([*plan.edits, *plan.needs, *(read.place for read in reads)])
        self.window = window
        self._plan = plan
        self._reads = reads
        self._needs = plan.needs
        self._seen: Seen = {}
        self._taken: dict[int, Any] = {}

    @property
    def taken(self) -> list[Any]:
        """What each read returned, in their order."""
        return [self._taken[index] for index in range(len(self._reads))]

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Makes the edits of a place, then the reads."""
        for edit in self._plan.edits.get(place, ()):
            value = edit.apply(value, self.window, self._seen)
        if place in self._needs:
            self._seen[place] = by_position(value, place.site)
        for index, read in enumerate(self._reads):
            if read.place == place:
                self._taken[index] = read.reduce(value)
        return value
