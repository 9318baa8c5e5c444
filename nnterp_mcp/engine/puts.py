"""What is put into the rows of a batch, and the way of one pass through the places where that happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.hook_points import Place, by_position, in_order
from nnterp_mcp.engine.interpreter import Data, apply
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.sites import FACTS


@dataclass(frozen=True, eq=False)
class Input:
    """What one run reads.

    Attributes:
        prompt: The prompt.
        noise: What is added to the embedding of each of its tokens; None for nothing.
        plan: The operations in force, planned for a request that the prompt belongs to.
    """

    prompt: EncodedPrompt
    noise: Float[Tensor, "position hidden"] | None = None
    plan: Plan = NOTHING

    def __len__(self) -> int:
        """How many tokens the prompt has."""
        return len(self.prompt.ids)


@dataclass(frozen=True, eq=False)
class Put:
    """States that a row goes on with in the place of its own.

    Attributes:
        place: Where.
        positions: The tokens of the prompt, in ascending order.
        states: The state of each of them; of the heads alone that are put, where heads are named.
        heads: The heads; None for all, or where there are none.
    """

    place: Place
    positions: Sequence[int]
    states: Float[Tensor, "position *head width"]
    heads: Sequence[int] | None = None

    @property
    def entrance(self) -> Place:
        """The last place at which a row may join the batch: where the residual stream is all that it carries."""
        in_stream = self.place.site in ("layers_input", "layers_output")
        return self.place if in_stream else Place("layers_input", self.place.layer)

    def apply(self, value: Float[Tensor, "row position *head width"], row: int, first: int) -> None:
        """Puts the states into a row, in place.

        Args:
            value: The states of all rows.
            row: Which of them.
            first: The prompt's position that the first column holds.
        """
        columns = torch.tensor([at - first for at in self.positions], device=value.device)
        states = self.states.to(value)
        if self.heads is None:
            value[row, columns] = states
        else:
            value[row, columns[:, None], torch.tensor(list(self.heads), device=value.device)] = states


Row = Sequence[Put]
"""What is put into one row: at least one put."""


class Walk:
    """The way of one pass through the places at which something is put, held or read, or rows join.

    Row 0 of the batch is the unpatched input; the others follow in the order in which they join. What is put counts
    for more than the operations in force at its place: they come before it.

    Args:
        given: The input.
        rows: What is put into the others.
        joins: How many rows join at each place; none where all are there from the start.
        held: Places at which every row has what the unpatched one has, but for what is put there.
        reads: Places at which to keep what the rows have, before anything is held or put.
        first: The prompt's position that the first column holds.

    Attributes:
        places: The places at which anything happens, in the order in which the model comes to them.
        reads: Those that are read, in the same order.
        plan: The operations in force.
    """

    def __init__(
        self,
        given: Input,
        rows: Sequence[Row] = (),
        *,
        joins: Mapping[Place, int] | None = None,
        held: frozenset[Place] = frozenset(),
        reads: Sequence[Place] = (),
        first: int = 0,
    ) -> None:
        self.reads = in_order(reads)
        self.plan = given.plan
        self._given = given
        self._joins = joins or {}
        self._held = held
        self._first = first
        self._needs = given.plan.needs
        self._seen: Data = {}
        self._taken: dict[Place, Tensor] = {}
        self._window = cache(self._window_of)
        self._puts: dict[Place, list[tuple[int, Put]]] = {}
        for index, row in enumerate(rows, start=1):
            for put in row:
                self._puts.setdefault(put.place, []).append((index, put))
        noise = [] if given.noise is None else [Place("token_embeddings")]
        changed = [*noise, *given.plan.edits, *self._needs, *self._joins, *held, *self._puts]
        self.places = in_order([*changed, *self.reads])

    @property
    def taken(self) -> list[Tensor]:
        """What was read, in the order of `reads`."""
        return [self._taken[place] for place in self.reads]

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Makes the changes of a place, and reads what its rows have before anything is held or put."""
        value = self._join(place, self._edit(place, self._disturb(place, value)))
        if place in self.reads:
            self._taken[place] = by_position(value, place.site).clone()
        value = self._put(place, self._hold(place, value))
        if place in self._needs:
            self._seen[str(place)] = by_position(value, place.site)
        return value

    def _disturb(self, place: Place, value: Tensor) -> Tensor:
        noise = self._given.noise
        if noise is None or place.site != "token_embeddings":
            return value
        return value + noise[self._first :].to(value)

    def _edit(self, place: Place, value: Tensor) -> Tensor:
        """The states with the operations in force made, in each row that is there so far."""
        for edit in self.plan.edits.get(place, ()):
            resolved = edit.resolve(self._window(len(value)), value.shape, value.device)
            value = value if resolved is None else apply(value, resolved, self._seen)
        return value

    def _window_of(self, rows: int) -> Window:
        return Window([self._given.prompt] * rows, [0] * rows, self._first, len(self._given))

    def _join(self, place: Place, value: Float[Tensor, "row position *rest"]) -> Tensor:
        """Appends rows to the batch: copies of the unpatched one."""
        more = self._joins.get(place, 0)
        return torch.cat([value, value[:1].expand(more, *value.shape[1:])]) if more else value

    def _hold(self, place: Place, value: Float[Tensor, "row position *rest"]) -> Tensor:
        """Gives every row what the unpatched one has."""
        return value[:1].repeat(len(value), *[1] * (value.ndim - 1)) if place in self._held else value

    def _put(self, place: Place, value: Tensor) -> Tensor:
        if place not in self._puts:
            return value
        value = value.clone()
        for row, put in self._puts[place]:
            put.apply(by_position(value, place.site), row, 0 if FACTS[place.site].whole_sequence else self._first)
        return value
