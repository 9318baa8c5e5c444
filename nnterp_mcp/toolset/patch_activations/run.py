"""`patch_activations` in the worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.planning.clean_states import Known
from nnterp_mcp.engine.readouts.metrics import default_metric
from nnterp_mcp.engine.readouts.targets import FollowedTargets, follow_target_sets
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.experiments.features.patching import FeatureRuns
from nnterp_mcp.experiments.patching.activation_patching import Ablation, Cell, Grid, Patcher, Patching, make_grid
from nnterp_mcp.experiments.patching.circuits import Circuit, SetRuns, measure_circuit, patch_set
from nnterp_mcp.experiments.patching.controls import strongest
from nnterp_mcp.experiments.patching.corruption import Pair, put_in_force
from nnterp_mcp.experiments.patching.grid_work import CellRuns, Pace, group_cells, join_runs, tokens_of, work_of
from nnterp_mcp.experiments.statistics.bootstrap import Estimate, average_draws, estimate_mean, estimate_recovery
from nnterp_mcp.formatting import seconds
from nnterp_mcp.request.corruption import Ablated
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.patch_activations.columns import column_label, columns_of, patched_at, texts_of
from nnterp_mcp.toolset.patch_activations.params import PatchActivationsParams
from nnterp_mcp.toolset.patch_activations.places import find_positions, find_receivers, patch_features
from nnterp_mcp.toolset.patch_activations.result import (
    CircuitScores,
    GridColumn,
    MemberLoss,
    PatchActivationsResult,
    PatchedCell,
    PatchedSet,
    name_cell,
    position_of,
)
from nnterp_mcp.worker.job import Finished, Job
from nnterp_mcp.worker.pairs import make_pairs

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_MOST_RUNS = 50_000
_STRONGEST = 5
"""Cells that the control patches together, at most."""


def run(bench: Bench, params: PatchActivationsParams, job: Job) -> PatchActivationsResult:
    """Patches every cell, and the strongest together where a control is wanted; or the set that the call names."""
    prompts = bench.encode(params.clean)
    pairs, how = make_pairs(bench, params.clean, params.corrupted, prompts)
    if params.interventions:
        known: Known = {}
        pairs = put_in_force(pairs, lambda prompts: bench.plan(params.interventions, prompts, known))
    targets = follow_target_sets(params.targets, len(prompts), bench.model)
    patcher = _patcher(bench, params, pairs, targets)
    work = bench.workload(prompts, (), job)
    base = _base(bench, params, patcher, targets[0], how, len(prompts))
    if params.features:
        return _named_features(patcher, params, base, patch_features(bench, params, patcher, work))
    if params.cells:
        return _named_set(patcher, params, base, work)
    return _grid(bench, patcher, params, base, work, job)


def _patcher(
    bench: Bench, params: PatchActivationsParams, pairs: Sequence[Pair], targets: Sequence[FollowedTargets]
) -> Patcher:
    given = params.corrupted
    ablated: Ablation | None = given.ablate if isinstance(given, Ablated) and given.ablate != "resample" else None
    sites, heads = params.columns
    grid = make_grid(
        bench.model,
        pairs,
        sites,
        layers=params.layers,
        positions=find_positions(params),
        heads=heads,
        wholes=params.wholes,
        window=params.window,
    )
    return Patcher(
        bench.model,
        pairs,
        grid,
        direction="noising" if isinstance(given, Ablated) else params.direction,
        metric=default_metric(len(targets[0].ids)) if params.metric == "auto" else params.metric,
        targets=[list(found.ids.values()) for found in targets],
        ablation=ablated,
        mean_over=[Input(one) for one in bench.encode(given.over)] if isinstance(given, Ablated) and given.over else (),
        receivers=find_receivers(bench.model, params),
        through_mlps=params.paths == "direct",
    )


def _base(
    bench: Bench, params: PatchActivationsParams, patcher: Patcher, targets: FollowedTargets, how: str, prompts: int
) -> PatchActivationsResult:
    """The result without what was measured."""
    pairs, grid = patcher.pairs, patcher.grid
    return PatchActivationsResult(
        model=bench.handle,
        direction=patcher.direction,
        metric=patcher.metric,
        corruption=how,
        receivers=params.ends,
        through_mlps=patcher.through_mlps,
        window=params.window,
        in_force=list(pairs[0].clean.plan.labels),
        prompts=prompts,
        texts=texts_of(pairs[0]),
        draws=len(pairs) // prompts,
        clean=Measured(mean=0.0),
        corrupted=None,
        by_head=grid.by_unit,
        at=patched_at(grid, pairs[0].clean.prompt) if grid.by_unit else "",
        columns=columns_of(grid, pairs[0], bench.model.tokenizer),
        categories=targets.words,
        shared=targets.shared,
        cells=[],
    )


def _grid(
    bench: Bench,
    patcher: Patcher,
    params: PatchActivationsParams,
    base: PatchActivationsResult,
    work: Workload,
    job: Job,
) -> PatchActivationsResult:
    """Every cell by itself, in groups that are kept and resumed."""
    cells, pairs = patcher.grid.cells, patcher.pairs
    total = len(pairs) * len(cells)
    if total > _MOST_RUNS:
        raise LimitExceeded(
            f"{total} runs (prompts × draws × cells), and at most {_MOST_RUNS} are made in a call.",
            "Choose fewer layers, positions, heads, sites or prompts.",
        )
    tokens = tokens_of(patcher.grid, pairs)
    effort = work_of(patcher.grid, tokens, len(pairs), bench.model.num_layers)
    groups = group_cells(tokens, effort)
    pace = Pace([[effort[at] for at in group] for group in groups], len(pairs), bench.settings.call_timeout)

    def report(done: int, runs: int | None, unit: str) -> None:
        left = pace.left(done, runs or total)
        work.progress(done, runs, f"{unit}, about {seconds(left)} left" if left >= 1 else unit)

    def compute(group: Sequence[int]) -> list[CellRuns]:
        pace.begin(groups.index(list(group)))
        found = patcher.patch([[cells[at]] for at in group], replace(work, progress=report))
        clean, corrupted = found.clean.tolist(), None if found.corrupted is None else found.corrupted.tolist()
        follows = found.by_construction.tolist()
        return [
            CellRuns(at, values, clean, corrupted, one)
            for at, values, one in zip(group, found.values.T.tolist(), follows, strict=True)
        ]

    def assemble(finished: Finished[CellRuns]) -> PatchActivationsResult:
        found = join_runs(finished.items)
        some = replace(patcher.grid, cells=[cells[one.number] for one in finished.items])
        summary = _Summary(patcher, found)
        _keep(job, some, found)
        return base.model_copy(update={**summary.baselines(), "cells": summary.cells(some, base.columns)})

    whole = job.in_parts(groups, CellRuns, compute, assemble, "cells", left=lambda: pace.seconds_left)
    if params.control:
        told = replace(
            work, progress=lambda done, runs, unit: job.progress(total + done, None, f"{unit}, with the control")
        )
        whole.patched_set = _control(patcher, whole, told)
    return whole


def _control(patcher: Patcher, result: PatchActivationsResult, work: Workload) -> PatchedSet | None:
    """The cells with the largest effects of one sign, together, and random sets; None where no cell has one."""
    pairs = zip(patcher.grid.cells, result.cells, strict=True)
    free = [(cell, found.effect) for cell, found in pairs if found.effect and not found.by_construction]
    cells, effects = [cell for cell, _ in free], [effect for _, effect in free]
    chosen = strongest(cells, effects, min(_STRONGEST, len(cells) // 2), _wanted_sign(result, effects))
    if not chosen:
        return None
    return _set(patcher, chosen, patch_set(patcher, chosen, cells, work), named=False)


def _wanted_sign(result: PatchActivationsResult, effects: Sequence[float]) -> float:
    """The sign of an effect that restores the answer (denoising) or breaks it (noising)."""
    if result.corrupted is None:
        return 1.0 if result.metric == "kl" else -1.0
    restoring = result.clean.mean - result.corrupted.mean
    return restoring if result.direction == "denoising" else -restoring


def _named_set(
    patcher: Patcher, params: PatchActivationsParams, base: PatchActivationsResult, work: Workload
) -> PatchActivationsResult:
    chosen = _chosen(patcher, params, base.columns)
    runs = patch_set(patcher, chosen, patcher.grid.cells, work)
    done = len(patcher.pairs) * (1 + len(runs.draws))
    told = replace(work, progress=lambda more, total, unit: work.progress(done + more, None, unit))
    circuit = measure_circuit(patcher, chosen, runs.draws, told) if params.complement else None
    found = _set(patcher, chosen, runs, named=True, circuit=circuit)
    members = [] if circuit is None else _members(patcher.grid, chosen, circuit)
    baselines = _Summary(patcher, runs.patched).baselines()
    return base.model_copy(update={**baselines, "patched_set": found, "members": members})


def _named_features(
    patcher: Patcher, params: PatchActivationsParams, base: PatchActivationsResult, runs: FeatureRuns
) -> PatchActivationsResult:
    summary, sets = _Summary(patcher, runs.patched), 1 + len(runs.draws)
    means = [one.mean for one in summary.mean(runs.patched.values)]
    measured = summary.recovery(runs.patched.values) or []
    recoveries = [one.mean for one in measured]
    found = PatchedSet(
        named=True,
        cells=[f"feature {one}" for cell in params.features for one in cell.features],
        metric=summary.mean(runs.patched.values)[0],
        recovery=measured[0] if measured else None,
        matched=True,
        controls=means[1:sets],
        control_recoveries=recoveries[1:sets],
        dictionary=params.features[0].dictionary,
        directions=means[sets:],
        direction_recoveries=recoveries[sets:],
    )
    return base.model_copy(update={**summary.baselines(), "patched_set": found})


def _members(grid: Grid, chosen: Sequence[Cell], circuit: Circuit) -> list[MemberLoss]:
    return [
        MemberLoss(cell=_name(grid, cell), loss=_measured(loss))
        for cell, loss in zip(chosen, circuit.losses, strict=True)
    ]


def _chosen(patcher: Patcher, params: PatchActivationsParams, columns: Sequence[GridColumn]) -> list[Cell]:
    """The cells of the grid that the call names.

    Raises:
        InvalidRequest: One of them is not in the grid.
    """
    by_head, found = patcher.grid.by_unit, list[Cell]()
    labels = [column.label for column in columns]
    for given in params.grid_cells:
        if by_head and given.positions is not None:
            raise InvalidRequest(
                f"the cell {given.shown} has positions of its own: where heads are named, all cells are patched at "
                "those of the call.",
                f"Give positions={list(given.positions)}.",
            )
        site = given.site or params.columns[0][0]
        layers = resolve_layers(given.layers, patcher.model.num_layers, patcher.model.name)
        alike = [
            cell
            for cell in patcher.grid.cells
            if cell.site == site
            and cell.layer in layers
            and (given.columns is None or column_label(patcher.grid, cell) in given.columns)
        ]
        if {cell.layer for cell in alike} != set(layers):
            raise InvalidRequest(
                f"the cells {given.shown} are not all in the grid of sites and layers of the call.",
                f"Its {'heads' if by_head else 'positions'} are {', '.join(labels)}.",
            )
        found += alike
    return list(dict.fromkeys(found))


def _set(
    patcher: Patcher, chosen: Sequence[Cell], runs: SetRuns, *, named: bool, circuit: Circuit | None = None
) -> PatchedSet:
    summary = _Summary(patcher, runs.patched)
    means, recoveries = summary.mean(runs.patched.values), summary.recovery(runs.patched.values)
    places = Counter(cell.place for cell in chosen)
    return PatchedSet(
        named=named,
        cells=[_name(patcher.grid, cell) for cell in chosen],
        metric=means[0],
        recovery=None if recoveries is None else recoveries[0],
        matched=all(Counter(cell.place for cell in drawn) == places for drawn in runs.draws),
        controls=[measured.mean for measured in means[1:]],
        control_recoveries=[measured.mean for measured in (recoveries or [])[1:]],
        circuit=None if circuit is None else _scores(patcher, circuit, summary),
    )


def _name(grid: Grid, cell: Cell) -> str:
    return name_cell(cell.site, cell.layer, column_label(grid, cell), grid.by_unit)


def _scores(patcher: Patcher, circuit: Circuit, summary: _Summary) -> CircuitScores:
    return CircuitScores(
        total=len(patcher.grid.cells),
        intact=summary.mean(circuit.intact[:, None])[0],
        none=summary.mean(circuit.none[:, None])[0],
        faithfulness=_measured(circuit.faithfulness),
        completeness=_measured(circuit.completeness),
        random_faithfulness=circuit.random_faithfulness,
        random_completeness=circuit.random_completeness,
    )


@dataclass(frozen=True)
class _Summary:
    """Means, intervals and recoveries of patched runs."""

    patcher: Patcher
    found: Patching

    def _average(self, values: Float[Tensor, "pair ..."]) -> Tensor:
        return average_draws(values, [pair.index for pair in self.patcher.pairs])

    def mean(self, values: Float[Tensor, "pair run"]) -> list[Measured]:
        """The metric of each run."""
        return [_measured(estimate) for estimate in estimate_mean(self._average(values))]

    def baselines(self) -> dict[str, Measured | None]:
        """The metric of the unpatched runs."""
        clean, corrupted = self.found.clean, self.found.corrupted
        return {
            "clean": self.mean(clean[:, None])[0],
            "corrupted": None if corrupted is None else self.mean(corrupted[:, None])[0],
        }

    def recovery(self, values: Float[Tensor, "pair run"]) -> list[Measured] | None:
        """The recovery of each run; None where it is not defined."""
        if self.found.corrupted is None:
            return None
        clean, corrupted = self._average(self.found.clean), self._average(self.found.corrupted)
        found = estimate_recovery(self._average(values), clean, corrupted)
        return None if found is None else [_measured(estimate) for estimate in found]

    def cells(self, grid: Grid, columns: Sequence[GridColumn]) -> list[PatchedCell]:
        """The cells of a grid, each of which is a run."""
        values, clean, corrupted = self.found.values, self.found.clean, self.found.corrupted
        unpatched = corrupted if self.patcher.direction == "denoising" and corrupted is not None else clean
        recoveries = self.recovery(values) or [None] * values.shape[1]
        effects = self._average(values - unpatched[:, None]).mean(0).tolist()
        labels = [column.label for column in columns]
        rows = zip(grid.cells, self.mean(values), recoveries, effects, self.found.by_construction.tolist(), strict=True)
        return [
            PatchedCell(
                site=cell.site,
                layer=cell.layer,
                column=labels.index(str(cell.column)) if grid.by_unit else cell.column,
                position=None if grid.by_unit else position_of(labels[cell.column]),
                head=cell.column if grid.by_unit else None,
                metric=metric,
                recovery=recovery,
                effect=effect,
                by_construction=follows,
            )
            for cell, metric, recovery, effect, follows in rows
        ]


def _measured(estimate: Estimate) -> Measured:
    return Measured(mean=estimate.mean, low=estimate.low, high=estimate.high)


def _keep(job: Job, grid: Grid, found: Patching) -> None:
    """Keeps the metric of every pair and cell as an array; not a number where a layer has no such cell."""
    sites = list(dict.fromkeys(cell.site for cell in grid.cells))
    layers = sorted({cell.layer for cell in grid.cells})
    columns = sorted({cell.column for cell in grid.cells})
    labels = columns if grid.by_unit else [grid.spans[0][column].label for column in columns]
    array = torch.full((len(found.values), len(sites), len(layers), len(labels)), torch.nan)
    for at, cell in enumerate(grid.cells):
        array[:, sites.index(cell.site), layers.index(cell.layer), columns.index(cell.column)] = found.values[:, at]
    axes = {"pair": list(range(len(array))), "site": sites, "layer": layers, "head" if grid.by_unit else "span": labels}
    job.keep("metric", array, axes)
