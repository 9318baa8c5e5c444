"""One forward pass over an input and its branches, hook point by hook point."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.constants import indices, on_device
from nnterp_mcp.engine.edits import Edit, Reached, StateEdit
from nnterp_mcp.engine.forward import NOTHING, Plan, skipped_layers, step_at
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.interpreter import Data, visit
from nnterp_mcp.engine.token_spans import Reach, Window
from nnterp_mcp.model.text.tokenization import EncodedPrompt


@dataclass(frozen=True)
class AddedByEntry:
    """The states plus vectors that differ by prompt or position.

    Attributes:
        vectors: The vectors.
        choose: Given the prompt's index and the position, returns which vector is added.
    """

    vectors: Float[Tensor, "vector width"]
    choose: Callable[[int, int], int]

    def resolve(self, states: Reached) -> Data:
        """The vector of each entry."""
        which = indices([self.choose(*entry) for entry in states.chosen.entries], states.device)
        return {"op": "add", "value": on_device(self.vectors, states.device)[which]}


@dataclass(frozen=True, eq=False)
class Input:
    """The input of one run.

    Attributes:
        prompt: The prompt.
        noise: Added to the embedding of each of its tokens; None for nothing.
        plan: The operations on it, planned for a request that the prompt belongs to.
    """

    prompt: EncodedPrompt
    noise: Float[Tensor, "position hidden"] | None = None
    plan: Plan = NOTHING

    def __len__(self) -> int:
        """The number of tokens in the prompt."""
        return len(self.prompt.ids)

    def agrees(self, position: int, other: Input, at: int) -> bool:
        """Its states at a position are known to equal those of another run, for everything read until then is the same.

        Args:
            other: The input of the other run.
            at: The position there.
        """
        same = position == at and self.prompt.ids[: at + 1] == other.prompt.ids[: at + 1]
        noise = any(one.noise is not None and bool(one.noise[: at + 1].any()) for one in (self, other))
        return same and not noise and not self.plan and not other.plan

    @property
    def operations(self) -> tuple[object, ...]:
        """Equal for inputs with the same operations."""
        edits = ((place, type(edit).__name__) for place, listed in self.plan.edits.items() for edit in listed)
        return (*self.plan.labels, *edits)

    @cached_property
    def edits(self) -> Mapping[Place, Sequence[Edit]]:
        """The edits of the run: the noise, then the operations."""
        if self.noise is None:
            return self.plan.edits
        place = Place("token_embeddings")
        everywhere = Reach({self.prompt.index: range(len(self))})
        noise = StateEdit(place, everywhere, AddedByEntry(self.noise, lambda prompt, position: position))
        return {**self.plan.edits, place: [noise, *self.plan.edits.get(place, ())]}


class BranchPass:
    """Visits the hook points at which rows join, are frozen, edited or read.

    Row 0 of the batch is the unedited input; the others follow in the order in which they join. The edits of a row come
    after the operations on the input at the same hook point.

    Args:
        base: The input.
        edits: The edits of the rows.
        joins: How many rows join at each hook point; none where all are there from the start.
        frozen: Hook points at which every row has the states of the unedited input, but for its own edits there.
        reads: Hook points whose states are returned, as they are before anything is frozen or edited there by a row.
        first: The first position that is computed.
        length: The position behind the last one; that of the whole input by default.
        ends: A hook point that the pass reaches in any case.

    Attributes:
        places: The hook points in the order in which the model comes to them.
        first: The first position that is computed.
    """

    def __init__(
        self,
        base: Input,
        edits: Sequence[StateEdit] = (),
        rows: Sequence[int] = (),
        *,
        joins: Mapping[Place, int] | None = None,
        frozen: Collection[Place] = (),
        reads: Sequence[Place] = (),
        first: int = 0,
        length: int | None = None,
        ends: Place | None = None,
    ) -> None:
        self.first = first
        self._length = len(base) if length is None else length
        self._base = base
        self._needs = base.plan.needs
        self._joins = joins or {}
        self._frozen = frozen
        self._reads = reads
        self._seen: Data = {}
        self._captured: Data = {}
        self._window = cache(self._window_of_base)
        self._prompts = [EncodedPrompt(row, base.prompt.text, base.prompt.ids, base.prompt.spans) for row in rows]
        self._edits: dict[Place, list[StateEdit]] = {}
        self._reached: dict[Place, list[int]] = {}
        for edit in edits:
            reached = [at for at, row in enumerate(rows, start=1) if row in edit.reach.positions]
            if reached and (first < len(base) or edit.reach.goes_on):
                self._edits.setdefault(edit.place, []).append(edit)
                self._reached[edit.place] = sorted({*self._reached.get(edit.place, ()), *reached})
        at_end = [] if ends is None else [ends]
        self.places = in_order([*base.edits, *self._needs, *self._joins, *frozen, *reads, *self._edits, *at_end])

    @property
    def states(self) -> dict[Place, Float[Tensor, "joined position *head width"]]:
        """The states that were read."""
        return {place: self._captured[str(place)] for place in self._reads}

    @property
    def skipped(self) -> list[int]:
        """Layers that operations on the input skip at all positions of the pass."""
        return skipped_layers(self._base.edits, self._window(1))

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Makes the operations on the input, lets rows join, reads, freezes, and makes the rows' own edits."""
        return visit(value, self.step_at(place, value.shape, value.device), self._seen, self._captured)

    def step_at(self, place: Place, shape: Sequence[int], device: torch.device) -> Data:
        """The interpreter's step at a hook point.

        Args:
            place: The hook point.
            shape: The shape of the states there, of the rows that have joined before.
            device: Where they are.
        """
        count, joins, reached = shape[0], self._joins.get(place, 0), self._reached.get(place, ())
        step = step_at(place, shape, device, self._window(count), Plan(self._base.edits))
        present = [row for row in reached if row < count]
        joining = range(count, count + joins) if reached else ()
        branch = {
            "join": joins,
            "read": str(place) if place in self._reads else None,
            "columns": self.columns,
            "freeze": place in self._frozen,
            "present": indices(present, device) if present else None,
            "edits": self._resolve(place, present, shape, device),
            "joining": self._resolve(place, joining, shape, device),
            "heads_first": step["heads_first"],
        }
        return step | {"branch": branch, "needed": str(place) if place in self._needs else None}

    @property
    def columns(self) -> int:
        """The number of positions that the pass computes."""
        return self._length - self.first

    def rows_at(self, place: Place, present: int) -> int:
        """The number of rows in the batch at a hook point.

        Args:
            place: The hook point.
            present: The number of rows from the start.
        """
        return present + sum(count for other, count in self._joins.items() if other.turn < place.turn)

    def _resolve(self, place: Place, rows: Sequence[int], shape: Sequence[int], device: torch.device) -> list[Data]:
        """The edits of some rows, as if these were all there are."""
        if not rows:
            return []
        window = Window([self._prompts[row - 1] for row in rows], [0] * len(rows), self.first, self._length)
        edits = [edit.resolve(window, [len(rows), *shape[1:]], device) for edit in self._edits[place]]
        return [edit for edit in edits if edit is not None]

    def _window_of_base(self, rows: int) -> Window:
        return Window([self._base.prompt] * rows, [0] * rows, self.first, self._length)
