"""`verify_claim` in the worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.readouts.metrics import default_metric
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.claims.components import Component
from nnterp_mcp.experiments.claims.effects import CONTROL_TRIAL, Evidence, dose_trials, trials_of
from nnterp_mcp.experiments.claims.trials import Behaviour, Trial
from nnterp_mcp.experiments.claims.verdict import Criterion, CriterionName, judge
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.experiments.statistics.bootstrap import Estimate
from nnterp_mcp.formatting import seconds
from nnterp_mcp.toolset.verify_claim.claimed import Claimed, cells_of, find_claimed, spans_of
from nnterp_mcp.toolset.verify_claim.held_out import HeldOut, hold_out
from nnterp_mcp.toolset.verify_claim.params import Predicted, VerifyClaimParams
from nnterp_mcp.toolset.verify_claim.result import (
    ClaimCriterion,
    DoseEffect,
    HeldOutPrompt,
    RandomComponent,
    VerifyClaimResult,
)
from nnterp_mcp.worker.job import Finished, Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_MOST_RUNS = 50_000
_NULLS = 39
"""Random components, of which one may have as large an effect at p = 0.05."""

_TOGETHER = 8
"""Components that are computed and saved together."""

_BOTH: tuple[CriterionName, ...] = ("necessity", "sufficiency")
_DECIDING: dict[Predicted, tuple[CriterionName, ...]] = {
    "drives": _BOTH,
    "opposes": _BOTH,
    "necessary": ("necessity",),
    "sufficient": ("sufficiency",),
}


@dataclass(frozen=True)
class ComponentRuns:
    """The runs of one component: the metric of each prompt by trial, and the divergence of each control prompt."""

    number: int
    values: dict[str, list[float]]
    controls: list[float]


def run(bench: Bench, params: VerifyClaimParams, job: Job) -> VerifyClaimResult:
    """Draws random components, exchanges each in every way, and judges."""
    held = hold_out(bench, params)
    if not held.pairs:
        return _result(bench, params, held, [])
    prepared = _prepare(bench, params, held)
    work = bench.workload([pair.clean.prompt for pair in held.pairs], (), job)
    job.tell(f"{prepared.runs} runs, about {seconds(prepared.pace() * prepared.runs)} at most")

    def compute(group: Sequence[int]) -> list[ComponentRuns]:
        return prepared.compute(group, work)

    def assemble(finished: Finished[ComponentRuns]) -> VerifyClaimResult:
        return _result(bench, params, held, finished.items, prepared)

    numbers = range(len(prepared.components))
    groups = [[0], *(list(numbers[at : at + _TOGETHER]) for at in range(1, len(numbers), _TOGETHER))]
    return job.in_parts(groups, ComponentRuns, compute, assemble, "components")


@dataclass(frozen=True)
class _Prepared:
    """Everything that is measured, before it is.

    Attributes:
        behaviour: The prompts of the one.
        controls: The control prompts; None without any.
        trials: The trials of every component, by name.
        doses: Those of the claim's component alone.
        claimed: The claim's component and the random ones.
        unmeasured: Tests that cannot be made, each with why.
    """

    behaviour: Behaviour
    controls: Behaviour | None
    trials: dict[str, Trial]
    doses: dict[str, Trial]
    claimed: Claimed
    unmeasured: list[str]

    @property
    def components(self) -> list[Component]:
        """The claim's component, then the random ones."""
        return [self.claimed.component, *self.claimed.randoms]

    @property
    def runs(self) -> int:
        """The runs with a component exchanged."""
        each = len(self.behaviour.pairs) * len(self.trials)
        each += 0 if self.controls is None else len(self.controls.pairs)
        return each * len(self.components) + len(self.behaviour.pairs) * len(self.doses)

    def pace(self) -> float:
        """Seconds that a run takes which shares nothing with others."""
        begun = time.monotonic()
        self.behaviour.baselines()
        return (time.monotonic() - begun) / (2 * len(self.behaviour.pairs))

    def compute(self, group: Sequence[int], work: Workload) -> list[ComponentRuns]:
        """The runs of some components."""
        chosen = [self.components[at] for at in group]
        trials = {**self.trials, **(self.doses if list(group) == [0] else {})}
        values = self.behaviour.measure(chosen, list(trials.values()), work)
        controls = torch.empty(0, 1, len(chosen))
        if self.controls is not None:
            controls = self.controls.measure(chosen, [CONTROL_TRIAL], work)
        return [
            ComponentRuns(
                number,
                {name: values[:, trial, at].tolist() for trial, name in enumerate(trials)},
                controls[:, 0, at].tolist(),
            )
            for at, number in enumerate(group)
        ]


def _prepare(bench: Bench, params: VerifyClaimParams, held: HeldOut) -> _Prepared:
    model, pairs = bench.model, held.pairs
    cells = cells_of(params.claim)
    spans = spans_of(pairs, params.positions, cells)
    shortest = min(range(len(pairs)), key=lambda at: len(pairs[at].clean))
    claimed = find_claimed(bench, params.claim, spans[shortest], _lengths(pairs[shortest]), _NULLS)
    components = [claimed.component, *claimed.randoms]
    places = list(dict.fromkeys(part.place for one in components for part in one.parts))
    metric = default_metric(len(held.categories.ids))
    behaviour = Behaviour(model, pairs, spans, metric, [list(one.ids.values()) for one in held.targets], places)
    even = len(pairs) > 1 and len({len(pair.clean) for pair in pairs}) == 1
    unmeasured = [] if even else ["mean ablation: the clean prompts are not equally long"]
    controls = None
    if params.control_prompts and even:
        prompts = [Pair(Input(prompt), None) for prompt in bench.encode(params.control_prompts)]
        controls = Behaviour(model, prompts, spans_of(prompts, params.positions, cells), "kl", (), places)
    elif params.control_prompts:
        unmeasured.append("specificity: it compares mean ablations")
    trials = trials_of(metric, means=even, controls=controls is not None)
    prepared = _Prepared(behaviour, controls, trials, dose_trials(metric), claimed, unmeasured)
    if prepared.runs > _MOST_RUNS:
        raise LimitExceeded(
            f"{prepared.runs} runs (prompts × trials × components), and at most {_MOST_RUNS} are made in a call.",
            "Give fewer prompts.",
        )
    return prepared


def _lengths(pair: Pair) -> tuple[int, int]:
    clean = len(pair.clean)
    return clean, clean if pair.corrupted is None else len(pair.corrupted)


def _result(
    bench: Bench,
    params: VerifyClaimParams,
    held: HeldOut,
    found: Sequence[ComponentRuns],
    prepared: _Prepared | None = None,
) -> VerifyClaimResult:
    """The verdict on what is measured so far."""
    evidence = None if prepared is None else _evidence(params, prepared, found)
    criteria = [] if evidence is None else evidence.criteria()
    gap = None if evidence is None else evidence.gap
    verdict = judge(gap, len(held.pairs), criteria)
    parts = [] if prepared is None else prepared.claimed.names
    return VerifyClaimResult(
        model=bench.handle,
        component=", ".join(parts[:6]) + (f" and {len(parts) - 6} more" if len(parts) > 6 else ""),
        parts=parts,
        predicts=params.predicts,
        metric=default_metric(len(held.categories.ids)),
        categories=held.categories.words,
        shared=held.categories.shared,
        corruption=held.corruption,
        outcome=verdict.outcome,
        reasons=verdict.reasons,
        left_out=len(params.clean) - len(held.pairs),
        gap=None if gap is None else _measured(gap),
        kind="" if prepared is None else prepared.claimed.kind,
        unmeasured=[] if prepared is None else prepared.unmeasured,
        criteria=[_criterion(one) for one in criteria],
        doses=[] if evidence is None else _doses(evidence),
        prompts=[] if evidence is None else _prompts(held, evidence),
        control=len(params.control_prompts),
        nulls=[] if prepared is None else _nulls(prepared, criteria),
        runs=0 if prepared is None else prepared.runs,
    )


def _evidence(params: VerifyClaimParams, prepared: _Prepared, found: Sequence[ComponentRuns]) -> Evidence | None:
    if not found or found[0].number != 0:
        return None
    return Evidence(
        {name: torch.tensor([one.values[name] for one in found if name in one.values]).T for name in found[0].values},
        prepared.behaviour.baselines(),
        torch.tensor([one.controls for one in found]).T if prepared.controls is not None else None,
        sign=-1 if params.predicts == "opposes" else 1,
        decides=_DECIDING[params.predicts],
    )


def _criterion(one: Criterion) -> ClaimCriterion:
    return ClaimCriterion(
        criterion=one.name,
        effect=_measured(one.effect),
        null_95=float(torch.tensor(one.nulls).quantile(0.95)) if one.nulls else None,
        p=one.p,
        holds=one.holds,
        decides=one.decides,
        rank=one.rank,
    )


def _doses(evidence: Evidence) -> list[DoseEffect]:
    if not evidence.measurable:
        return []
    return [DoseEffect(strength=strength, effect=_measured(effect)) for strength, effect in evidence.doses()]


def _prompts(held: HeldOut, evidence: Evidence) -> list[HeldOutPrompt]:
    known = evidence.measurable
    necessity = evidence.by_prompt("necessity") if known else [None] * len(held.pairs)
    sufficiency = evidence.by_prompt("sufficiency") if known else [None] * len(held.pairs)
    return [
        HeldOutPrompt(
            prompt=number,
            text=pair.clean.prompt.text,
            clean=clean,
            corrupted=corrupted,
            necessity=needed,
            sufficiency=sufficient,
        )
        for number, pair, (clean, corrupted), needed, sufficient in zip(
            held.numbers, held.pairs, evidence.baselines.tolist(), necessity, sufficiency, strict=True
        )
    ]


def _nulls(prepared: _Prepared, criteria: Sequence[Criterion]) -> list[RandomComponent]:
    """The random components that are measured so far."""
    done = min((len(one.nulls) for one in criteria), default=0)
    return [
        RandomComponent(component=name, effects={one.name: one.nulls[at] for one in criteria})
        for at, name in enumerate(prepared.claimed.random_names[:done])
    ]


def _measured(estimate: Estimate) -> Measured:
    return Measured(mean=estimate.mean, low=estimate.low, high=estimate.high)
