"""Integration of slopes along a line, finest where they do not yet account for what the function does.

A way through a model's embeddings is smooth for the most part, with a few bends a thousandth of it wide. Points spread
evenly miss them however many there are; but the function itself is known at every point, and how far it rises between
two is what the slopes between them have to add up to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

_PIECES = 8
"""Pieces of equal length to begin with, where there are points enough to halve some of them later."""

_SHARE = 0.2
"""Share of the total error that the pieces halved at once make up."""

_CLOSE = 1e-4
"""The part of the function's range on the way that the pieces may miss together."""

_SHORTEST = 2.0**-20
"""The part of the way to its end that a piece takes if it is not halved: single precision tells little between."""


@dataclass(frozen=True, eq=False)
class Point:
    """A point on the way.

    Attributes:
        share: How far along it is, from 0 to 1.
        value: The function there.
        slopes: Its slope along the way, split into parts; None where the way begins at a singularity.
    """

    share: float
    value: float
    slopes: Float[Tensor, " part"] | None


@dataclass(frozen=True)
class Integral:
    """The slopes' integral.

    Attributes:
        values: That of each part.
        first: The function where the way begins.
        last: The function where it ends.
        missed: What the pieces' sums miss of the function's rise over each, added up with signs aside.
        points: How many points were looked at.
    """

    values: Float[Tensor, " part"]
    first: float
    last: float
    missed: float
    points: int


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of the way, by Simpson's rule; by the midpoint rule where it begins at a singularity."""

    left: Point
    middle: Point
    right: Point

    @property
    def length(self) -> float:
        return self.right.share - self.left.share

    @cached_property
    def integral(self) -> Float[Tensor, " part"]:
        left, middle, right = self.left.slopes, self.middle.slopes, self.right.slopes
        assert middle is not None
        assert right is not None
        return middle * self.length if left is None else (left + 4 * middle + right) * (self.length / 6)

    @cached_property
    def missed(self) -> float:
        return abs(self.right.value - self.left.value - float(self.integral.sum()))

    def halve(self, first: Point, second: Point) -> list[_Piece]:
        return [_Piece(self.left, first, self.middle), _Piece(self.middle, second, self.right)]


def integrate(evaluate: Callable[[Sequence[float]], Sequence[Point]], most: int, at_once: int) -> Integral:
    """Integrates slopes from 0 to 1, part by part, halving the pieces that miss most of what the function does.

    What the parts' sum misses is seen exactly; where parts err in opposite directions it does not tell.

    Args:
        evaluate: Looks at points, given how far along they are, in ascending order.
        most: Points at most; 3 are always looked at.
        at_once: How many are looked at together, about, once it is known where they are needed.

    Returns:
        The integral, as soon as the pieces miss next to nothing, at the latest when the points are used up.

    Source: Lyness, "Notes on the Adaptive Simpson Quadrature Routine" (1969), with the function's own rise over a piece
    for its error estimate.
    """
    count = min(_PIECES, max(1, (most - 1) // 4))
    points = evaluate([at / (2 * count) for at in range(2 * count + 1)])
    pieces = [_Piece(*points[at : at + 3]) for at in range(0, 2 * count, 2)]
    values = [point.value for point in points]
    while True:
        room = min((most - len(values)) // 2, max(1, at_once // 2))
        chosen = _missing_most(pieces, room, _CLOSE * (max(values) - min(values)))
        if not chosen:
            break
        found = evaluate([(one.share + other.share) / 2 for piece in chosen for one, other in _gaps(piece)])
        values += [point.value for point in found]
        halves = [half for at, piece in enumerate(chosen) for half in piece.halve(*found[2 * at : 2 * at + 2])]
        pieces = sorted(
            [*(piece for piece in pieces if piece not in chosen), *halves], key=lambda piece: piece.left.share
        )
    total = torch.stack([piece.integral for piece in pieces]).sum(0)
    missed = sum(piece.missed for piece in pieces)
    return Integral(total, points[0].value, points[-1].value, missed, len(values))


def _gaps(piece: _Piece) -> list[tuple[Point, Point]]:
    return [(piece.left, piece.middle), (piece.middle, piece.right)]


def _missing_most(pieces: Sequence[_Piece], room: int, close: float) -> list[_Piece]:
    """The pieces that together make up most of what is missed, in their order; none where that is next to nothing."""
    order = sorted(
        (piece for piece in pieces if piece.length > _SHORTEST * piece.right.share), key=lambda piece: -piece.missed
    )
    missed = sum(piece.missed for piece in order)
    if missed <= close:
        return []
    count, covered = 0, 0.0
    while count < min(room, len(order)) and covered < _SHARE * missed:
        covered += order[count].missed
        count += 1
    return sorted(order[:count], key=lambda piece: piece.left.share)
