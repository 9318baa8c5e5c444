"""`verify_claim` in the worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.readouts.metrics import default_metric
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.claims.components import Component
from nnterp_mcp.experiments.claims.effects import DIVERGENCE, Evidence, TrialPlan
from nnterp_mcp.experiments.claims.trials import Behaviour
from nnterp_mcp.experiments.claims.verdict import Criterion, CriterionName, judge
from nnterp_mcp.experiments.patching.alignment import Span
from nnterp_mcp.experiments.patching.corruption import Pair, put_in_force
from nnterp_mcp.experiments.statistics.bootstrap import Estimate
from nnterp_mcp.formatting import seconds
from nnterp_mcp.toolset.verify_claim.claimed import Claimed, claimed_labels, find_claimed, find_features, spans_of
from nnterp_mcp.toolset.verify_claim.held_out import HeldOut, hold_out
from nnterp_mcp.toolset.verify_claim.params import ClaimedFeatures, Predicted, VerifyClaimParams
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
    """The runs of one component: the metric of each prompt, and of each control prompt, by trial."""

    number: int
    values: dict[str, list[float]]
    controls: dict[str, list[float]]


def run(bench: Bench, params: VerifyClaimParams, job: Job) -> VerifyClaimResult:
    """Draws random components, exchanges each in every way, and judges."""
    held = hold_out(bench, params)
    if not held.pairs:
        return _result(bench, params, held, [])
    prepared = _prepare(bench, params, held)
    numbers, left = range(len(prepared.components)), prepared.pace() * prepared.runs
    job.tell(f"{prepared.runs} runs, about {seconds(left)} at most")

    def report(done: int, total: int | None, unit: str) -> None:
        job.progress(done, total, f"{unit}, about {seconds(left)} left" if left >= 1 else unit)

    work = replace(bench.workload([pair.clean.prompt for pair in held.pairs], (), job), progress=report)

    def compute(group: Sequence[int]) -> list[ComponentRuns]:
        nonlocal left
        begun = time.monotonic()
        found = prepared.compute(group, work)
        left = (time.monotonic() - begun) / len(group) * (numbers[-1] - group[-1])
        return found

    def assemble(finished: Finished[ComponentRuns]) -> VerifyClaimResult:
        return _result(bench, params, held, finished.items, prepared)

    groups = [[0], *(list(numbers[at : at + _TOGETHER]) for at in range(1, len(numbers), _TOGETHER))]
    return job.in_parts(groups, ComponentRuns, compute, assemble, "components", left=lambda: left)


@dataclass(frozen=True)
class _Prepared:
    """Everything that is measured, before it is.

    Attributes:
        behaviour: The prompts of the one.
        controls: The control prompts; None where none are run.
        plan: The trials.
        claimed: The claim's component and the random ones.
        unmeasured: Tests that cannot be made, each with why.
    """

    behaviour: Behaviour
    controls: Behaviour | None
    plan: TrialPlan
    claimed: Claimed
    unmeasured: list[str]

    @property
    def components(self) -> list[Component]:
        """The claim's component, then the random ones."""
        return self.claimed.components

    @property
    def runs(self) -> int:
        """The runs with a component exchanged."""
        prompts = len(self.behaviour.pairs)
        each = prompts * len(self.plan.every)
        each += 0 if self.controls is None else len(self.controls.pairs) * len(self.plan.control)
        return each * len(self.components) + prompts * len(self.plan.doses)

    def pace(self) -> float:
        """Seconds that a run takes which shares nothing with others."""
        begun = time.monotonic()
        self.behaviour.baselines()
        return (time.monotonic() - begun) / (2 * len(self.behaviour.pairs))

    def compute(self, group: Sequence[int], work: Workload) -> list[ComponentRuns]:
        """The runs of some components."""
        chosen = [self.components[at] for at in group]
        trials = {**self.plan.every, **(self.plan.doses if list(group) == [0] else {})}
        values = self.behaviour.measure(chosen, list(trials.values()), work)
        on_controls = {} if self.controls is None else self.plan.control
        controls = values if self.controls is None else self.controls.measure(chosen, list(on_controls.values()), work)
        return [
            ComponentRuns(
                number,
                {name: values[:, trial, at].tolist() for trial, name in enumerate(trials)},
                {name: controls[:, trial, at].tolist() for trial, name in enumerate(on_controls)},
            )
            for at, number in enumerate(group)
        ]


def _prepare(bench: Bench, params: VerifyClaimParams, held: HeldOut) -> _Prepared:
    pairs, metric = held.pairs, default_metric(len(held.categories.ids))
    targets = [list(one.ids.values()) for one in held.targets]
    labels = claimed_labels(params.claim)
    spans = spans_of(pairs, params.positions, labels)
    claimed = _find(bench, params, Behaviour(bench.model, pairs, spans, metric, targets))
    places = list(dict.fromkeys(place for one in claimed.components for place in one.places))
    behaviour = Behaviour(bench.model, pairs, spans, metric, targets, places)
    even = len(pairs) > 1 and len({len(pair.clean) for pair in pairs}) == 1
    controls, unmeasured = None, [] if even else ["mean ablation: the clean prompts are not equally long"]
    if held.controls and (even or params.alone):
        prompts = _control_prompts(bench, params, held)
        aligned = spans_of(prompts, params.positions, labels)
        given, alike = (metric, [targets[0]] * len(prompts)) if params.alone else ("kl", [])
        controls = Behaviour(bench.model, prompts, aligned, given, alike, places, behaviour)
    elif held.controls:
        unmeasured.append("specificity: it compares mean ablations")
    plan = TrialPlan(metric, alone=params.alone, means=even, controls=controls is not None)
    prepared = _Prepared(behaviour, controls, plan, claimed, unmeasured)
    if prepared.runs > _MOST_RUNS:
        raise LimitExceeded(
            f"{prepared.runs} runs (prompts × trials × components), and at most {_MOST_RUNS} are made in a call.",
            "Give fewer prompts.",
        )
    return prepared


def _find(bench: Bench, params: VerifyClaimParams, behaviour: Behaviour) -> Claimed:
    """The component of the claim, and random ones."""
    pairs = behaviour.pairs
    shortest = min(range(len(pairs)), key=lambda at: len(pairs[at].clean))
    spans: Sequence[Span] = behaviour.spans[shortest]
    if not isinstance(params.claim, ClaimedFeatures):
        lengths = _lengths(pairs[shortest])
        return find_claimed(bench, params.claim, spans, lengths, _NULLS, alone=params.alone)
    basis = bench.dictionaries.find_basis(params.claim.dictionary, params.claim.layers)
    read = replace(behaviour, places=[*basis.reads, basis.writes])
    return find_features(bench, params.claim, basis, spans, read, _NULLS)


def _control_prompts(bench: Bench, params: VerifyClaimParams, held: HeldOut) -> list[Pair]:
    pairs = [Pair(Input(prompt), None) for prompt in bench.encode(held.controls)]
    if not params.interventions:
        return pairs
    return put_in_force(pairs, lambda prompts: bench.plan(params.interventions, prompts))


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
    given = len(held.controls) if params.alone and params.predicts != "necessary" else None
    verdict = judge(gap, len(held.pairs), criteria, controls=given)
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
        control=len(held.controls),
        alone=params.alone,
        directions=0 if prepared is None else len(prepared.claimed.directions),
        in_force=list(held.pairs[0].clean.plan.labels) if held.pairs else [],
        lost=held.lost,
        nulls=[] if prepared is None else _nulls(prepared, criteria),
        runs=0 if prepared is None else prepared.runs,
    )


def _evidence(params: VerifyClaimParams, prepared: _Prepared, found: Sequence[ComponentRuns]) -> Evidence | None:
    if not found or found[0].number != 0:
        return None
    values = {
        name: torch.tensor([one.values[name] for one in found if name in one.values]).T for name in found[0].values
    }
    controls = {name: torch.tensor([one.controls[name] for one in found]).T for name in found[0].controls}
    if "sufficiency" in controls:
        values["sufficiency"] = controls["sufficiency"]
    given = prepared.controls.baselines()[:, 0] if prepared.controls is not None and params.alone else None
    return Evidence(
        values,
        prepared.behaviour.baselines(),
        controls.get(DIVERGENCE),
        given,
        alone=params.alone,
        directions=1 + len(prepared.claimed.randoms) if prepared.claimed.directions else None,
        sign=-1 if params.predicts == "opposes" else 1,
        decides=_DECIDING[params.predicts],
    )


def _criterion(one: Criterion) -> ClaimCriterion:
    return ClaimCriterion(
        criterion=one.name,
        effect=_measured(one.effect),
        null_95=_largest(one.nulls),
        direction_95=_largest(one.directions or ()),
        p=one.p,
        holds=one.holds,
        decides=one.decides,
        rank=one.rank,
    )


def _largest(nulls: Sequence[float]) -> float | None:
    return float(torch.tensor(nulls).quantile(0.95)) if nulls else None


def _doses(evidence: Evidence) -> list[DoseEffect]:
    if not evidence.measurable:
        return []
    return [DoseEffect(strength=strength, effect=_measured(effect)) for strength, effect in evidence.doses()]


def _prompts(held: HeldOut, evidence: Evidence) -> list[HeldOutPrompt]:
    unknown = [None] * len(held.pairs)
    necessity = (evidence.by_prompt("necessity") if evidence.measurable else None) or unknown
    sufficiency = (evidence.by_prompt("sufficiency") if evidence.measurable else None) or unknown
    return [
        HeldOutPrompt(
            prompt=number,
            text=pair.clean.prompt.text,
            clean=clean,
            corrupted=None if evidence.alone else corrupted,
            necessity=needed,
            sufficiency=sufficient,
        )
        for number, pair, (clean, corrupted), needed, sufficient in zip(
            held.numbers, held.pairs, evidence.baselines.tolist(), necessity, sufficiency, strict=True
        )
    ]


def _nulls(prepared: _Prepared, criteria: Sequence[Criterion]) -> list[RandomComponent]:
    """The random components that are measured so far."""
    claimed = prepared.claimed
    done = min((len(one.nulls) for one in criteria), default=0)
    random = [
        RandomComponent(component=name, effects={one.name: one.nulls[at] for one in criteria})
        for at, name in enumerate(claimed.random_names[:done])
    ]
    moved = min((len(one.directions or ()) for one in criteria), default=0)
    return random + [
        RandomComponent(
            component=f"as far along random direction {at}",
            effects={one.name: one.directions[at] for one in criteria if one.directions is not None},
        )
        for at in range(moved)
    ]


def _measured(estimate: Estimate) -> Measured:
    return Measured(mean=estimate.mean, low=estimate.low, high=estimate.high)
