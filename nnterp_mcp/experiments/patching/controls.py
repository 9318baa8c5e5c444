"""Controls of a patching grid: as many cells, of the same sites and layers, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nnterp_mcp.experiments.patching.activation_patching import Cell

DRAWS = 20
"""Random sets with which a set of cells is compared; with fewer there is no comparison."""

_TRIES = 50
"""Draws for each set that is wanted: some come twice."""


def strongest(cells: Sequence[Cell], effects: Sequence[float], count: int, sign: float = 0) -> list[Cell]:
    """The cells with the largest effects, the strongest first; those without any left out.

    Args:
        effects: Their effects.
        count: The number of cells, at most.
        sign: Only effects of this sign; 0 for either.
    """
    order = sorted(range(len(cells)), key=lambda at: -abs(effects[at]))
    return [cells[at] for at in order if effects[at] and effects[at] * sign >= 0][:count]


def draw_matched(others: Sequence[Cell], chosen: Sequence[Cell], draws: int = DRAWS, seed: int = 0) -> list[list[Cell]]:
    """Different random sets of as many cells as were chosen.

    Each chosen cell is replaced by another of its site and layer; where none is left, by one of its site in the nearest
    layer, then by any.

    Args:
        others: The cells to draw from; those that were chosen are not drawn.
        chosen: The cells that an effect is claimed of.
        draws: The number of sets.
        seed: The seed of the draws.

    Returns:
        The sets; none where so many different ones cannot be drawn.
    """
    dice = random.Random(seed)
    others = [cell for cell in others if cell not in set(chosen)]
    if not chosen or len(others) < len(chosen):
        return []
    found: dict[frozenset[Cell], list[Cell]] = {}
    for _ in range(draws * _TRIES):
        drawn = _draw(others, chosen, dice)
        found.setdefault(frozenset(drawn), drawn)
        if len(found) == draws:
            return list(found.values())
    return []


def _draw(others: Sequence[Cell], chosen: Sequence[Cell], dice: random.Random) -> list[Cell]:
    left = list(others)
    drawn: list[Cell] = []
    for cell in chosen:
        distances = [(other.site != cell.site, abs(other.layer - cell.layer)) for other in left]
        nearest = min(distances)
        alike = [other for other, distance in zip(left, distances, strict=True) if distance == nearest]
        drawn.append(dice.choice(alike))
        left.remove(drawn[-1])
    return drawn
