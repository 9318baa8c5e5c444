"""States with which rows of one input continue instead of their own: given ones, or those of another run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.edits import Patched, Reached, StateEdit
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.observation import Observed
from nnterp_mcp.engine.token_spans import Reach


class Replacement(NamedTuple):
    """States that one row continues with instead of its own.

    Attributes:
        row: The row.
        place: The hook point.
        positions: The tokens.
        states: The state of each of them, of the heads or neurons alone that are replaced, where these are named; or
            where another run, whose states stayed with a served model, has them.
        units: The heads, or at the site `neurons` the neurons; None for all, or where there are none.
    """

    row: int
    place: Place
    positions: Sequence[int]
    states: Float[Tensor, "position *head width"] | SourceStates
    units: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SourceStates:
    """States of a run that makes them in the same request as the branches that take them.

    Attributes:
        run: The run; one for all branches of an input.
        positions: The tokens.
    """

    run: Observed
    positions: Sequence[int]


@dataclass(frozen=True)
class TakenFromRun:
    """States of another run in the states' place, which an executor knows by `source_name`.

    Attributes:
        run: The run.
        place: The hook point.
        positions: The run's position for each row and position.
    """

    run: Observed
    place: Place
    positions: Mapping[tuple[int, int], int]

    def resolve(self, states: Reached) -> Data:
        """The other states, entry by entry."""
        columns = torch.tensor([self.positions[entry] for entry in states.chosen.entries])
        return {"op": "take", "name": source_name(self.place), "index": (torch.zeros_like(columns), columns)}


def source_name(place: Place) -> str:
    """The name under which edits take the states of another run at a hook point."""
    return f"source {place}"


def replace_states(replacements: Iterable[Replacement]) -> list[StateEdit]:
    """The edits of branches that continue with given states: one for each hook point and choice of heads or neurons.

    Args:
        replacements: The states; of two for one position of a row, the later one counts.
    """
    grouped: dict[tuple[Place, tuple[int, ...] | None], list[Replacement]] = {}
    for one in replacements:
        grouped.setdefault((one.place, one.units), []).append(one)
    return [_replace(place, units, listed) for (place, units), listed in grouped.items()]


def _replace(place: Place, units: tuple[int, ...] | None, replacements: Sequence[Replacement]) -> StateEdit:
    states: dict[int, Tensor] = {}
    index: dict[int, dict[int, int]] = {}
    run: Observed | None = None
    for row, _, positions, new, _ in replacements:
        if isinstance(new, SourceStates):
            run = new.run
            index.setdefault(row, {}).update(zip(positions, new.positions, strict=True))
            continue
        before = states.get(row)
        start = 0 if before is None else len(before)
        states[row] = new if before is None else torch.cat([before, new])
        index.setdefault(row, {}).update(zip(positions, range(start, start + len(new)), strict=True))
    flat = {(row, at): which for row, found in index.items() for at, which in found.items()}
    change = Patched(states, flat) if run is None else TakenFromRun(run, place, flat)
    reach = Reach({row: sorted(found) for row, found in index.items()})
    if place.site == "neurons":
        return StateEdit(place, reach, change, neurons=units)
    return StateEdit(place, reach, change, units)
