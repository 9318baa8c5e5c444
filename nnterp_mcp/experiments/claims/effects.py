"""From the metric of every run of a claim's test to effects in the predicted direction, and the tests on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.readouts.metrics import MetricName
from nnterp_mcp.experiments.claims.trials import Trial
from nnterp_mcp.experiments.claims.verdict import Criterion, CriterionName
from nnterp_mcp.experiments.statistics.bootstrap import (
    Estimate,
    estimate_difference,
    estimate_mean,
    estimate_recovery,
)
from nnterp_mcp.experiments.statistics.ranking import rank_correlation

STRENGTHS = (0.25, 0.5, 0.75)
"""The strengths of a dose response between none and the whole exchange."""

_HALF = 0.5
"""The strength between these at which random components are exchanged too."""

DIVERGENCE = "divergence"
"""The trial that is compared with control prompts."""

CONTROL_TRIAL = Trial("clean", "mean", "kl")
"""The trial on control prompts, and on the behaviour's own for comparison."""


def trials_of(metric: MetricName, *, means: bool, controls: bool) -> dict[str, Trial]:
    """The trials of every component by name: both directions, half the strength, means, and their divergence.

    Args:
        metric: The metric of the behaviour.
        means: Prompts are equally long, so that they have position-wise means.
        controls: There are control prompts, with which the divergence is compared.
    """
    trials = {"necessity": Trial("clean", "other", metric), "sufficiency": Trial("corrupted", "other", metric)}
    trials[_dose(_HALF)] = Trial("clean", "other", metric, _HALF)
    if means:
        trials["mean ablation"] = Trial("clean", "mean", metric)
    if means and controls:
        trials[DIVERGENCE] = CONTROL_TRIAL
    return trials


def dose_trials(metric: MetricName) -> dict[str, Trial]:
    """The trials of the claim's component alone, by name: the other strengths."""
    others = (strength for strength in STRENGTHS if strength != _HALF)
    return {_dose(strength): Trial("clean", "other", metric, strength) for strength in others}


def _dose(strength: float) -> str:
    return f"strength {strength:g}"


@dataclass(frozen=True)
class Evidence:
    """Measurements on the prompts that did not serve to find the claim; the first component is the claim's.

    Attributes:
        values: The metric of every prompt and component, by the name of the trial; of the first one alone where the
            others were not run.
        baselines: The metric of the clean and the corrupted run of each prompt.
        controls: The divergence of control prompts under mean ablation; None without any.
        sign: 1 for a claim that the component drives the behaviour, -1 that it works against it.
        least: The smallest share of the gap that counts.
        decides: Which of necessity and sufficiency the claim asserts.
    """

    values: Mapping[str, Float[Tensor, "prompt component"]]
    baselines: Float[Tensor, "prompt 2"]
    controls: Float[Tensor, "control component"] | None = None
    sign: int = 1
    least: float = 0.1
    decides: Sequence[CriterionName] = ("necessity", "sufficiency")

    @property
    def gap(self) -> Estimate:
        """The metric of clean less that of corrupted runs."""
        return estimate_mean(self.baselines[:, :1] - self.baselines[:, 1:])[0]

    @property
    def measurable(self) -> bool:
        """Clean and corrupted runs differ, so that effects are shares of something."""
        return estimate_recovery(self.baselines[:, :1], *self.baselines.T) is not None

    def criteria(self) -> list[Criterion]:
        """The tests that could be made; none where clean and corrupted runs do not differ."""
        if not self.measurable:
            return []
        names: tuple[CriterionName, ...] = ("necessity", "mean ablation", "sufficiency")
        found = [self._test(name, self.values[name], name in self.decides) for name in names if name in self.values]
        found.append(self._dose_response())
        return found if self.controls is None else [*found, self._specificity(self.controls)]

    def doses(self) -> list[tuple[float, Estimate]]:
        """The claim's effect at each strength."""
        by_strength = self._by_strength()
        return [(strength, self._shares(values[:, :1])[0]) for strength, values in by_strength.items()]

    def by_prompt(self, name: str) -> list[float]:
        """The claim's effect on each prompt, as a share of the mean gap."""
        values = self.values[name][:, 0]
        baseline = self.baselines[:, 1 if name == "sufficiency" else 0]
        gap = float(self.baselines[:, 0].mean() - self.baselines[:, 1].mean())
        moved = values - baseline if name == "sufficiency" else baseline - values
        return (self.sign * moved / gap).tolist()

    def _test(self, name: CriterionName, values: Float[Tensor, "prompt component"], decides: bool) -> Criterion:
        effect, *nulls = self._shares(values, restored=name == "sufficiency")
        return Criterion(name, effect, [null.mean for null in nulls], self.least, decides)

    def _shares(self, values: Float[Tensor, "prompt component"], *, restored: bool = False) -> list[Estimate]:
        """The share of the gap that is closed (restored) or opened, in the predicted direction."""
        clean, corrupted = self.baselines.T if restored else self.baselines.flip(1).T
        shares = estimate_recovery(values, clean, corrupted)
        assert shares is not None
        return [_signed(share, self.sign) for share in shares]

    def _by_strength(self) -> dict[float, Float[Tensor, "prompt component"]]:
        between = {strength: self.values[_dose(strength)] for strength in STRENGTHS}
        return {**between, 1.0: self.values["necessity"]}

    def _dose_response(self) -> Criterion:
        """The effect at half the strength; the rank correlation is over all strengths."""
        effect, *nulls = self._shares(self.values[_dose(_HALF)])
        rank = rank_correlation([0.0, *(share.mean for _, share in self.doses())])
        return Criterion("dose response", effect, [null.mean for null in nulls], 0.0, "necessity" in self.decides, rank)

    def _specificity(self, controls: Float[Tensor, "control component"]) -> Criterion:
        """The divergence on the behaviour's prompts less that on control prompts, in nats."""
        own = self.values[DIVERGENCE]
        effect, *nulls = estimate_difference(own, controls)
        return Criterion("specificity", effect, [null.mean for null in nulls], 0.0, decides=True)


def _signed(estimate: Estimate, sign: int) -> Estimate:
    if sign > 0:
        return estimate
    low, high = estimate.low, estimate.high
    return Estimate(-estimate.mean, None if high is None else -high, None if low is None else -low)
