"""`patch_activations` in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.clean_states import Known
from nnterp_mcp.engine.readouts.metrics import default_metric
from nnterp_mcp.engine.readouts.targets import follow_target_sets
from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.patching.activation_patching import Ablation, Cell, Grid, Patcher, Patching, make_grid
from nnterp_mcp.experiments.patching.alignment import LabelledSpans, Span
from nnterp_mcp.experiments.patching.controls import draw_matched, strongest
from nnterp_mcp.experiments.patching.corruption import Pair, put_in_force
from nnterp_mcp.experiments.patching.path_patching import Receiver
from nnterp_mcp.experiments.statistics.bootstrap import Estimate, average_draws, estimate_mean, estimate_recovery
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import span_text
from nnterp_mcp.request.corruption import Ablated
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.toolset.patch_activations.params import PatchActivationsParams
from nnterp_mcp.toolset.patch_activations.result import (
    EVERYWHERE,
    GridColumn,
    PatchActivationsResult,
    PatchedCell,
    Together,
    position_of,
)
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.pairs import make_pairs

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_MOST_RUNS = 50_000
_STRONGEST = 5
"""Cells that the control is about."""
_CONTROLS = 10
"""Random sets of cells beside them."""


def run(bench: Bench, params: PatchActivationsParams, job: Job) -> PatchActivationsResult:
    """Patches every cell, and the strongest together where a control is wanted."""
    model = bench.model
    prompts = bench.encode(params.clean)
    pairs, how = make_pairs(bench, params.clean, params.corrupted, prompts)
    if params.interventions:
        known: Known = {}
        pairs = put_in_force(pairs, lambda prompts: bench.plan(params.interventions, prompts, known))
    targets = follow_target_sets(params.targets, len(prompts), model)
    ablation = _ablation(params)
    sites = params.sites or (("layers_output",) if params.heads is None else ("heads_output",))
    grid = make_grid(
        model,
        pairs,
        sites,
        layers=params.layers,
        positions=_positions(params),
        heads=params.heads,
        window=params.window,
    )
    total = len(pairs) * len(grid.cells)
    if total > _MOST_RUNS:
        raise LimitExceeded(
            f"{total} runs (prompts × draws × cells), and at most {_MOST_RUNS} are made in a call.",
            "Choose fewer layers, positions, heads, sites or prompts.",
        )
    patcher = Patcher(
        model,
        pairs,
        grid,
        direction="noising" if ablation is not None or isinstance(params.corrupted, Ablated) else params.direction,
        metric=default_metric(len(targets[0].ids)) if params.metric == "auto" else params.metric,
        targets=[list(found.ids.values()) for found in targets],
        ablation=ablation,
        receivers=_receivers(model, params),
        batch_tokens=bench.batch_tokens,
    )
    found = patcher.patch(on_batch=lambda done: job.progress(done, total, "runs read"))
    summary = _Summary(patcher, found)
    _keep(job, grid, summary.indices, found)
    together = _together(patcher, summary, total, job) if params.control else None
    return PatchActivationsResult(
        model=bench.handle,
        direction=patcher.direction,
        metric=patcher.metric,
        corruption=how,
        receivers=_named(params),
        window=params.window,
        in_force=list(pairs[0].clean.plan.labels),
        prompts=len(prompts),
        texts=_texts(pairs[0]),
        draws=len(pairs) // len(prompts),
        clean=summary.mean(found.clean[:, None])[0],
        corrupted=None if found.corrupted is None else summary.mean(found.corrupted[:, None])[0],
        by_head=grid.by_head,
        columns=_columns(grid, pairs[0], model.tokenizer),
        categories=targets[0].words,
        shared=targets[0].shared,
        cells=summary.cells([span.label for span in grid.spans[0]]),
        together=together,
    )


def _ablation(params: PatchActivationsParams) -> Ablation | None:
    given = params.corrupted
    return given.ablate if isinstance(given, Ablated) and given.ablate != "resample" else None


def _positions(params: PatchActivationsParams) -> Sequence[PositionSpec] | LabelledSpans:
    asked: Any = params.positions
    if asked == ("all",) and isinstance(params.corrupted, Ablated):  # a part is ablated as a whole
        return {EVERYWHERE: (asked, asked)}
    if isinstance(asked, Mapping):
        return {label: (span.clean, span.corrupted) for label, span in asked.items()}
    return asked


def _receivers(model: StandardizedTransformer, params: PatchActivationsParams) -> list[Receiver] | None:
    if params.receivers is None:
        return None
    return [
        Receiver(Place(receiver.site, layer), _heads(model, receiver.heads, layer))
        for receiver in params.receivers
        for layer in resolve_layers(receiver.layers, model.num_layers, model.name)
    ]


def _heads(model: StandardizedTransformer, asked: Any, layer: int) -> list[int] | None:
    if asked is None:
        return None
    return resolve_indices(asked, model.anatomy.layers[layer].num_heads, "head", f"layer {layer} of {model.name}")


def _named(params: PatchActivationsParams) -> str | None:
    if params.receivers is None:
        return None
    named = [
        f"{receiver.site} of layers {_plain(receiver.layers)}"
        + ("" if receiver.heads is None else f", heads {_plain(receiver.heads)}")
        for receiver in params.receivers
    ]
    return "; ".join(named) or "the logits"


def _plain(asked: Any) -> str:
    return ", ".join(map(str, asked)) if isinstance(asked, tuple) else str(asked)


def _texts(pair: Pair) -> list[str]:
    """The clean prompt, and the corrupted one unless noise or an ablation stands for it."""
    other = pair.corrupted
    return [pair.clean.prompt.text, *([] if other is None or other.noise is not None else [other.prompt.text])]


def _columns(grid: Grid, pair: Pair, tokenizer: Any) -> list[GridColumn]:
    if grid.by_head:
        return [GridColumn(label=str(head)) for head in sorted({cell.column for cell in grid.cells})]
    return [_column(span, pair, tokenizer) for span in grid.spans[0]]


def _column(span: Span, pair: Pair, tokenizer: Any) -> GridColumn:
    def tokens(prompt: EncodedPrompt, positions: Sequence[int]) -> str:
        return span_text(tokenizer, [prompt.ids[at] for at in positions])

    other = pair.corrupted
    corrupted = None if other is None or other.noise is not None else tokens(other.prompt, span.corrupted)
    return GridColumn(label=span.label, clean=tokens(pair.clean.prompt, span.clean), corrupted=corrupted)


class _Summary:
    """What is to be said of runs: means, intervals, recoveries.

    Attributes:
        indices: The place of each cell's column among the columns.
        effects: By how much each cell moves the metric, in the mean over prompts.
    """

    def __init__(self, patcher: Patcher, found: Patching) -> None:
        self._patcher = patcher
        self._found = found
        self._prompts = [pair.index for pair in patcher.pairs]
        numbers = sorted({cell.column for cell in patcher.grid.cells})
        self.indices = [numbers.index(cell.column) for cell in patcher.grid.cells]
        denoising = patcher.direction == "denoising" and found.corrupted is not None
        unpatched = found.corrupted if denoising and found.corrupted is not None else found.clean
        self.effects = self._average(found.values - unpatched[:, None]).mean(0).tolist()

    def _average(self, values: Float[Tensor, "pair ..."]) -> Tensor:
        return average_draws(values, self._prompts)

    def mean(self, values: Float[Tensor, "pair run"]) -> list[Measured]:
        """The metric of each run."""
        return [_measured(estimate) for estimate in estimate_mean(self._average(values))]

    def recovery(self, values: Float[Tensor, "pair run"]) -> list[Measured] | None:
        """The recovery of each run; None where it is not defined."""
        if self._found.corrupted is None:
            return None
        clean, corrupted = self._average(self._found.clean), self._average(self._found.corrupted)
        found = estimate_recovery(self._average(values), clean, corrupted)
        return None if found is None else [_measured(estimate) for estimate in found]

    def cells(self, labels: Sequence[str]) -> list[PatchedCell]:
        """Every cell of the grid; the labels are those of the spans."""
        by_head = self._patcher.grid.by_head
        values = self._found.values
        recoveries = self.recovery(values) or [None] * values.shape[1]
        rows = zip(self._patcher.grid.cells, self.indices, self.mean(values), recoveries, self.effects, strict=True)
        return [
            PatchedCell(
                site=cell.site,
                layer=cell.layer,
                column=column,
                position=None if by_head else position_of(labels[column]),
                head=cell.column if by_head else None,
                metric=metric,
                recovery=recovery,
                effect=effect,
            )
            for cell, column, metric, recovery, effect in rows
        ]


def _measured(estimate: Estimate) -> Measured:
    return Measured(mean=estimate.mean, low=estimate.low, high=estimate.high)


def _together(patcher: Patcher, summary: _Summary, before: int, job: Job) -> Together | None:
    """The strongest cells together, and random ones; None where there is nothing to compare."""
    cells = patcher.grid.cells
    moving = sum(effect != 0 for effect in summary.effects)
    chosen = strongest(cells, summary.effects, min(_STRONGEST, moving // 2))
    draws = draw_matched(cells, chosen, summary.effects, _CONTROLS) if chosen else []
    if not draws:
        return None
    runs: list[list[Cell]] = [chosen, *draws]
    found = patcher.patch(runs, lambda done: job.progress(before + done, None, "runs read, with those of the control"))
    means, recoveries = summary.mean(found.values), summary.recovery(found.values)
    return Together(
        cells=len(chosen),
        metric=means[0],
        recovery=None if recoveries is None else recoveries[0],
        controls=[measured.mean for measured in means[1:]],
        control_recoveries=[measured.mean for measured in (recoveries or [])[1:]],
    )


def _keep(job: Job, grid: Grid, indices: Sequence[int], found: Patching) -> None:
    """Keeps the metric of every pair and cell as an array; not a number where a layer has no such cell."""
    sites = list(dict.fromkeys(cell.site for cell in grid.cells))
    layers = sorted({cell.layer for cell in grid.cells})
    labels = sorted({cell.column for cell in grid.cells}) if grid.by_head else [span.label for span in grid.spans[0]]
    array = torch.full((len(found.values), len(sites), len(layers), len(labels)), torch.nan)
    for at, (cell, column) in enumerate(zip(grid.cells, indices, strict=True)):
        array[:, sites.index(cell.site), layers.index(cell.layer), column] = found.values[:, at]
    axes = {"pair": list(range(len(array))), "site": sites, "layer": layers, "head" if grid.by_head else "span": labels}
    job.keep("metric", array, axes)
