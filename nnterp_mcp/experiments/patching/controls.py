"""The control of a patching grid: as many cells, of the same sites and layers, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nnterp_mcp.experiments.patching.activation_patching import Cell


def strongest(cells: Sequence[Cell], effects: Sequence[float], count: int) -> list[Cell]:
    """The cells with the largest effects, whichever way they go, the strongest first; those without any left out."""
    order = sorted(range(len(cells)), key=lambda at: -abs(effects[at]))
    return [cells[at] for at in order[:count] if effects[at]]


def draw_matched(
    cells: Sequence[Cell], chosen: Sequence[Cell], effects: Sequence[float], draws: int, seed: int = 0
) -> list[list[Cell]]:
    """Random sets of as many cells as were chosen, to see beside what the chosen ones do together.

    Each chosen cell is replaced by another of its site and layer; where none is left, by one of another layer. Cells
    at which the two runs do not differ, so that a patch does nothing, are no control and are not drawn.

    Args:
        cells: The grid.
        chosen: The cells that an effect is claimed of.
        effects: What each cell of the grid does by itself; exactly 0 where the runs do not differ.
        draws: How many sets to draw; those that come twice are given once.
        seed: Where the random numbers begin.

    Returns:
        The sets; none where the grid has too few other cells.
    """
    dice = random.Random(seed)
    others = [cell for cell, effect in zip(cells, effects, strict=True) if effect and cell not in set(chosen)]
    if len(others) < len(chosen):
        return []
    return list({frozenset(cells): cells for cells in (_draw(others, chosen, dice) for _ in range(draws))}.values())


def _draw(others: Sequence[Cell], chosen: Sequence[Cell], dice: random.Random) -> list[Cell]:
    left = list(others)
    drawn: list[Cell] = []
    for cell in chosen:
        alike = [other for other in left if other.place == cell.place] or left
        drawn.append(dice.choice(alike))
        left.remove(drawn[-1])
    return drawn
