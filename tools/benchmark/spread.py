"""Medians, spreads, ratios and exponents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, median


@dataclass(frozen=True)
class Spread:
    """The middle of some values, and how far they lie from it.

    Attributes:
        median: The median.
        deviation: The median absolute deviation from it.
    """

    median: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of values; at least one."""
        middle = median(values)
        return cls(middle, median(abs(value - middle) for value in values))


def ratio(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """How many times the others the ones are, repeat by repeat.

    Repeats are taken in turns, so that a machine that slows down for a while slows both parts of a ratio down.
    """
    return Spread.of([one / other for one, other in zip(ones, others, strict=True)])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The k of cost = c · size^k, by least squares on logarithms."""
    x, y = [log(size) for size in sizes], [log(cost) for cost in costs]
    mean_x, mean_y = fmean(x), fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
