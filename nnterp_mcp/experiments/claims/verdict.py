"""The verdict on a claim: which tests decide, and the rule that keeps false claims from being called supported.

Each test compares the claim's effect with those of matched random components: if it were one of them, its effect would
be among the largest 5 % of all in at most 5 % of cases. A claim is supported only if every test that decides finds it
so (an intersection-union test), so the share of false claims that are called supported is at most that of the strictest
of these tests, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nnterp_mcp.experiments.statistics.bootstrap import Estimate
from nnterp_mcp.formatting import brief, number, plural

LEVEL = 0.05
"""The largest p at which an effect exceeds its random components."""

FEWEST_NULLS = 20
"""Random components that a test takes; from 19 on p can be as small as `LEVEL`."""

FEWEST_PROMPTS = 4
"""Prompts from which a bootstrap interval means something."""

MONOTONE = 0.8
"""The rank correlation of strength and effect from which on a response counts as rising with the dose."""

Outcome = Literal["supported", "not supported", "inconclusive"]
CriterionName = Literal["necessity", "mean ablation", "sufficiency", "dose response", "specificity"]


@dataclass(frozen=True)
class Criterion:
    """One comparison of a claim with random components.

    Attributes:
        name: The one.
        effect: The effect, positive where it is as the claim predicts.
        nulls: The effects of the random components.
        least: The smallest effect that counts.
        decides: The claim stands or falls with it.
        rank: The rank correlation of strengths and effects, of a dose response.
        directions: The effects of moves as far along random directions; None where there is no such control.
    """

    name: CriterionName
    effect: Estimate
    nulls: Sequence[float]
    least: float
    decides: bool
    rank: float | None = None
    directions: Sequence[float] | None = None

    @property
    def controls(self) -> list[Sequence[float]]:
        """The effects of random components, and those of random directions where there are any."""
        return [self.nulls] if self.directions is None else [self.nulls, self.directions]

    @property
    def p(self) -> float:
        """(1 + random ones with at least as large an effect) / (1 + their number); the larger one of two controls."""
        return max((1 + self.reaching(nulls)) / (1 + len(nulls)) for nulls in self.controls)

    def reaching(self, nulls: Sequence[float]) -> int:
        """The number of random ones with at least as large an effect."""
        return sum(null >= self.effect.mean for null in nulls)

    @property
    def exceeds(self) -> bool:
        """The effect is larger than those of nearly all random components."""
        return self.p <= LEVEL

    @property
    def holds(self) -> bool:
        """The effect is as predicted: surely positive, large enough, and larger than random components' effects."""
        rises = self.rank is None or self.rank >= MONOTONE
        return self.sure and self.effect.mean >= self.least and self.exceeds and rises

    @property
    def sure(self) -> bool:
        """The whole interval has the predicted sign."""
        return self.effect.low is not None and self.effect.low > 0

    @property
    def fails(self) -> bool:
        """The effect is surely too small, or no larger than random components' effects."""
        small = self.effect.high is not None and self.effect.high < self.least
        return small or (min(map(len, self.controls)) >= FEWEST_NULLS and not self.exceeds)


@dataclass(frozen=True)
class Verdict:
    """The outcome, and the reasons, the most important one first."""

    outcome: Outcome
    reasons: list[str]


def judge(gap: Estimate | None, prompts: int, criteria: Sequence[Criterion], *, controls: int | None = None) -> Verdict:
    """The verdict.

    Args:
        gap: The metric of clean less that of corrupted runs; None where it is not what effects are shares of.
        prompts: The prompts that did not serve to find the claim.
        criteria: The criteria.
        controls: The control prompts that did not serve to find the claim; None where no criterion that decides is
            measured on these alone.
    """
    deciding = [one for one in criteria if one.decides]
    obstacles = _obstacles(gap, prompts, deciding)
    if controls is not None and controls < FEWEST_PROMPTS:
        obstacles.append(_too_few(controls, "control prompt"))
    if obstacles:
        return Verdict("inconclusive", obstacles)
    failed = [_failure(one) for one in deciding if one.fails]
    doubtful = [_doubt(one) for one in deciding if not one.fails and not one.holds]
    doubtful += [f"{one.name}, which does not decide, has the opposite sign." for one in criteria if _contradicts(one)]
    held = [f"{one.name}: {_compared(one)}." for one in deciding if one.holds]
    outcome: Outcome = "not supported" if failed else "inconclusive" if doubtful else "supported"
    return Verdict(outcome, [*failed, *doubtful, *held])


def _obstacles(gap: Estimate | None, prompts: int, deciding: Sequence[Criterion]) -> list[str]:
    """The reasons for which no test can decide."""
    found: list[str] = []
    if prompts < FEWEST_PROMPTS:
        found.append(_too_few(prompts, "prompt"))
    if gap is not None and (gap.low is None or gap.high is None or gap.low <= 0 <= gap.high) and prompts:
        found.append("Clean and corrupted runs do not surely differ: there is no behaviour here to explain.")
    nulls = min((len(nulls) for one in deciding for nulls in one.controls), default=0)
    if nulls < FEWEST_NULLS and prompts:
        found.append(
            f"There are only {nulls} different random components, with which p is at least {1 / (1 + nulls):.2g}: a "
            f"test takes {FEWEST_NULLS}."
        )
    return found


def _too_few(count: int, noun: str) -> str:
    left = f"No {noun} is" if count == 0 else f"Only {plural(count, noun)} {'is' if count == 1 else 'are'}"
    return f"{left} left that did not serve to find the claim: a test takes at least {FEWEST_PROMPTS}."


def _contradicts(one: Criterion) -> bool:
    return not one.decides and one.effect.high is not None and one.effect.high < 0


def _failure(one: Criterion) -> str:
    if one.effect.high is not None and one.effect.high < 0:
        return f"{one.name}: the effect has the opposite sign ({_value(one)})."
    if not one.exceeds:
        return f"{one.name}: no larger than in random components ({_compared(one)})."
    return f"{one.name}: too small, {_value(one)}, where {number(one.least)} is the least that counts."


def _doubt(one: Criterion) -> str:
    if one.rank is not None and one.rank < MONOTONE:
        return f"{one.name}: the effect does not rise with the strength (rank correlation {one.rank:.2f})."
    if not one.sure:
        return f"{one.name}: the interval of the effect includes zero ({_value(one)})."
    return f"{one.name}: {_value(one)}, where {number(one.least)} is the least that counts."


def _compared(one: Criterion) -> str:
    shares = [f"{one.reaching(nulls) or 'none'} of {len(nulls)}" for nulls in one.controls]
    return f"{number(brief(one.effect.mean))}, {' and '.join(shares)} as large, p = {number(brief(one.p))}"


def _value(one: Criterion) -> str:
    low, high = one.effect.low, one.effect.high
    ends = "" if low is None or high is None else f" [{number(brief(low))} to {number(brief(high))}]"
    return f"{number(brief(one.effect.mean))}{ends}"
