"""Statistics of ranks: the area under the ROC curve, which is the chance that a value of one group exceeds one of
another, and the rank correlation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

_NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""

_HALVINGS = 60


def area_under_curve(first: Float[np.ndarray, " row"], second: Float[np.ndarray, " other"]) -> float:
    """The chance that a value of the first group exceeds one of the second; equal values count half."""
    ranks = rankdata(np.concatenate([first, second]))[: len(first)]
    return float((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def rank_correlation(values: Sequence[float]) -> float:
    """Spearman's rank correlation of values with their order; 0 where all are equal."""
    ranks = rankdata(values)
    if np.ptp(ranks) == 0:
        return 0.0
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def area_interval(area: float, first: int, second: int) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve, which is not empty at 0 and 1.

    Args:
        area: From 0 to 1.
        first: Values of the first group; several rows of one text count once, for they are not independent.
        second: Values of the second group.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2"
    (2006), method 5.
    """

    def end(outer: float) -> float:
        inner = area
        for _ in range(_HALVINGS):
            middle = (inner + outer) / 2
            if abs(middle - area) <= _NORMAL * _deviation(middle, first, second):
                inner = middle
            else:
                outer = middle
        return inner

    return end(0.0), end(1.0)


def _deviation(area: float, first: int, second: int) -> float:
    """The standard deviation of an estimate of this area."""
    spare = (first + second) / 2 - 1
    inflation = 1 + spare * ((1 - area) / (2 - area) + area / (1 + area))
    return math.sqrt(area * (1 - area) * inflation / (first * second))
