"""Intervals: of means and recoveries by resampling prompts, of medians by order statistics, of shares by Wilson."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_DRAWS = 2000
_QUANTILES = (0.025, 0.975)
_NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        mean: The mean.
        low: The lower end of its 95 % interval; None for one prompt.
        high: The upper end.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    def over(self, divisor: float) -> Estimate:
        """The estimate of values that are divided by a positive number."""
        ends = (None if end is None else end / divisor for end in (self.low, self.high))
        return Estimate(self.mean / divisor, *ends)


def average_draws(values: Float[Tensor, "pair ..."], prompts: Sequence[int]) -> Float[Tensor, "prompt ..."]:
    """The mean over the draws of noise of each prompt; of one prompt alone, every draw counts for itself.

    Args:
        values: What was measured for each pair.
        prompts: The prompt of each pair.
    """
    numbers = sorted(set(prompts))
    if len(numbers) == 1:
        return values
    return torch.stack([values[[at for at, prompt in enumerate(prompts) if prompt == one]].mean(0) for one in numbers])


def estimate_mean(values: Float[Tensor, "prompt run"]) -> list[Estimate]:
    """The mean of each run over prompts, with the interval that resampling the prompts gives."""
    return _estimates(values.mean(0), _resampled(values.double()) if len(values) > 1 else None)


def estimate_median(values: Sequence[float]) -> Estimate:
    """The lower median of one value a prompt, with the 95 % interval that order statistics give; for few, without."""
    count, ordered = len(values), sorted(values)
    heads = torch.arange(count + 1, dtype=torch.float64)
    logs = math.lgamma(count + 1) - (heads + 1).lgamma() - (count - heads + 1).lgamma() - count * math.log(2)
    below = int((logs.exp().cumsum(0) < _QUANTILES[0]).sum())
    ends = (ordered[below - 1], ordered[count - below]) if below else (None, None)
    return Estimate(ordered[(count - 1) // 2], *ends)


def estimate_recovery(
    values: Float[Tensor, "prompt run"], clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]
) -> list[Estimate] | None:
    """The share of the way from the corrupted metric (0) to the clean one (1), of the means over prompts.

    It is a ratio of means, not a mean of ratios, which one prompt with a small gap would rule; below 0 and above 1 are
    possible. Intervals resample prompts, in numerator and denominator alike (the percentile bootstrap).

    Returns:
        One estimate for each run; None where clean and corrupted do not differ, so that there is no way to go.
    """
    if float((clean.mean() - corrupted.mean()).abs()) < 1e-6:
        return None
    whole = torch.cat([values, clean[:, None], corrupted[:, None]], 1).double()
    drawn = _share(_resampled(whole)) if len(values) > 1 else None
    return _estimates(_share(whole.mean(0, keepdim=True))[0], drawn)


def estimate_difference(one: Float[Tensor, "prompt run"], other: Float[Tensor, "other run"]) -> list[Estimate]:
    """The mean of each run over some prompts less that over others; intervals resample both."""
    means = one.double().mean(0) - other.double().mean(0)
    several = min(len(one), len(other)) > 1
    return _estimates(means, _resampled(one.double()) - _resampled(other.double(), seed=1) if several else None)


def _share(means: Float[Tensor, "draw run_and_two"]) -> Float[Tensor, "draw run"]:
    clean, corrupted = means[:, [-2]], means[:, [-1]]
    return (means[:, :-2] - corrupted) / (clean - corrupted)


def _resampled(values: Float[Tensor, "prompt run"], seed: int = 0) -> Float[Tensor, "draw run"]:
    """Means over prompts drawn with replacement, as many as there are; the same draws for every run."""
    count = len(values)
    drawn = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(_DRAWS, count, dtype=values.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    return weights @ values / count


def _estimates(means: Float[Tensor, " run"], drawn: Float[Tensor, "draw run"] | None) -> list[Estimate]:
    if drawn is None:
        return [Estimate(mean) for mean in means.tolist()]
    ends = torch.quantile(drawn, torch.tensor(_QUANTILES, dtype=drawn.dtype), dim=0)
    return [Estimate(*numbers) for numbers in zip(means.tolist(), *ends.tolist(), strict=True)]


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many independent trials.

    Args:
        share: From 0 to 1.
        count: Trials; for several rows of one text count the text once, since they are no independent ones.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    square = _NORMAL**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
