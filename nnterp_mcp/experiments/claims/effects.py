"""From the metric of every run of a claim's test to effects in the predicted direction, and the tests on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.readouts.metrics import MetricName
from nnterp_mcp.experiments.claims.trials import StateOrigin, Trial
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

LEAST = 0.1
"""The smallest effect that counts: a tenth of the gap, since what does less explains little of a behaviour; for prompts
without corrupted ones 0.1 logits or nats, which change odds by a tenth."""


@dataclass(frozen=True)
class TrialPlan:
    """The trials of a claim.

    Attributes:
        metric: The metric of the behaviour.
        alone: Prompts have no corrupted ones: states are set to zero along the component, and control prompts are given
            the mean of the behaviour's.
        means: Prompts are equally long, so that they have position-wise means.
        controls: There are control prompts.
    """

    metric: MetricName
    alone: bool = False
    means: bool = False
    controls: bool = False

    @property
    def every(self) -> dict[str, Trial]:
        """Those of every component, by name: the whole exchange, half the strength, means, and their divergence."""
        source = self._source
        trials = {"necessity": Trial("clean", source, self.metric)}
        if not self.alone:
            trials["sufficiency"] = Trial("corrupted", "other", self.metric)
        trials[_dose(_HALF)] = Trial("clean", source, self.metric, _HALF)
        if self.means:
            trials["mean ablation"] = Trial("clean", "mean", self.metric)
        if self.controls and (self.means or self.alone):
            trials[DIVERGENCE] = self._divergence
        return trials

    @property
    def doses(self) -> dict[str, Trial]:
        """Those of the claim's component alone, by name: the other strengths."""
        others = (strength for strength in STRENGTHS if strength != _HALF)
        return {_dose(strength): Trial("clean", self._source, self.metric, strength) for strength in others}

    @property
    def control(self) -> dict[str, Trial]:
        """Those on control prompts, by name."""
        given = {"sufficiency": Trial("clean", "given", self.metric)} if self.alone else {}
        return {DIVERGENCE: self._divergence, **given}

    @property
    def _source(self) -> StateOrigin:
        return "zero" if self.alone else "other"

    @property
    def _divergence(self) -> Trial:
        return Trial("clean", "zero" if self.alone else "mean", "kl")


def _dose(strength: float) -> str:
    return f"strength {strength:g}"


@dataclass(frozen=True)
class Evidence:
    """Measurements on the prompts that did not serve to find the claim; the first component is the claim's.

    Attributes:
        values: The metric of every prompt and component, by the name of the trial; of the first one alone where the
            others were not run.
        baselines: The metric of the clean and the corrupted run of each prompt.
        controls: The divergence of control prompts under ablation; None without any.
        given: The metric of control prompts without the component; None where `values` has the sufficiency of runs that
            have one prompt each.
        alone: Prompts have no corrupted ones: effects are in the metric's unit, not shares of a gap.
        directions: Components from here on are random directions; None where all are of the claim's kind.
        sign: 1 for a claim that the component drives the behaviour, -1 that it works against it.
        least: The smallest share of the gap that counts.
        decides: Which of necessity and sufficiency the claim asserts.
    """

    values: Mapping[str, Float[Tensor, "prompt component"]]
    baselines: Float[Tensor, "prompt 2"]
    controls: Float[Tensor, "control component"] | None = None
    given: Float[Tensor, " control"] | None = None
    alone: bool = False
    directions: int | None = None
    sign: int = 1
    least: float = LEAST
    decides: Sequence[CriterionName] = ("necessity", "sufficiency")

    @property
    def gap(self) -> Estimate | None:
        """The metric of clean less that of corrupted runs; None without corrupted ones."""
        return None if self.alone else estimate_mean(self.baselines[:, :1] - self.baselines[:, 1:])[0]

    @property
    def measurable(self) -> bool:
        """Clean and corrupted runs differ, so that effects are shares of something, or effects are no shares."""
        return self.alone or estimate_recovery(self.baselines[:, :1], *self.baselines.T) is not None

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
        return [(strength, self._effects(values[:, :1])[0]) for strength, values in by_strength.items()]

    def by_prompt(self, name: str) -> list[float] | None:
        """The claim's effect on each prompt, as a share of the mean gap; None where it is measured on others."""
        if self.alone:
            moved = self.baselines[:, 0] - self.values["necessity"][:, 0]
            return (self.sign * moved).tolist() if name == "necessity" else None
        values = self.values[name][:, 0]
        baseline = self.baselines[:, 1 if name == "sufficiency" else 0]
        gap = float(self.baselines[:, 0].mean() - self.baselines[:, 1].mean())
        moved = values - baseline if name == "sufficiency" else baseline - values
        return (self.sign * moved / gap).tolist()

    def _test(self, name: CriterionName, values: Float[Tensor, "prompt component"], decides: bool) -> Criterion:
        effects = self._effects(values, restored=name == "sufficiency")
        return self._compared(name, effects, self.least, decides)

    def _compared(
        self, name: CriterionName, effects: Sequence[Estimate], least: float, decides: bool, rank: float | None = None
    ) -> Criterion:
        """The claim's effect next to those of both kinds of random ones."""
        effect, *others = effects
        means = [one.mean for one in others]
        if self.directions is None:
            return Criterion(name, effect, means, least, decides, rank)
        nulls, directions = means[: self.directions - 1], means[self.directions - 1 :]
        return Criterion(name, effect, nulls, least, decides, rank, directions)

    def _effects(self, values: Float[Tensor, "prompt component"], *, restored: bool = False) -> list[Estimate]:
        """Shares of the gap that are opened, or closed (restored), or changes of the metric; positive as predicted."""
        if self.alone:
            before = self.given if restored and self.given is not None else self.baselines[:, 0]
            moved = values - before[:, None]
            return [_signed(one, self.sign) for one in estimate_mean(moved if restored else -moved)]
        clean, corrupted = self.baselines.T if restored else self.baselines.flip(1).T
        shares = estimate_recovery(values, clean, corrupted)
        assert shares is not None
        return [_signed(share, self.sign) for share in shares]

    def _by_strength(self) -> dict[float, Float[Tensor, "prompt component"]]:
        between = {strength: self.values[_dose(strength)] for strength in STRENGTHS}
        return {**between, 1.0: self.values["necessity"]}

    def _dose_response(self) -> Criterion:
        """The effect at half the strength; the rank correlation is over all strengths."""
        effects = self._effects(self.values[_dose(_HALF)])
        rank = rank_correlation([0.0, *(effect.mean for _, effect in self.doses())])
        return self._compared("dose response", effects, 0.0, "necessity" in self.decides, rank)

    def _specificity(self, controls: Float[Tensor, "control component"]) -> Criterion:
        """The divergence on the behaviour's prompts less that on control prompts, in nats."""
        return self._compared("specificity", estimate_difference(self.values[DIVERGENCE], controls), 0.0, decides=True)


def _signed(estimate: Estimate, sign: int) -> Estimate:
    if sign > 0:
        return estimate
    low, high = estimate.low, estimate.high
    return Estimate(-estimate.mean, None if high is None else -high, None if low is None else -low)
