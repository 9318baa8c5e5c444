"""`attribute` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.readouts.metrics import default_metric
from nnterp_mcp.engine.readouts.targets import FollowedTargets, follow_target_sets
from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.attribution.direct_logit import DirectLogits, LogitPart, attribute_each
from nnterp_mcp.experiments.attribution.gradients import TokenAttribution, integrate_gradients, multiply_gradients
from nnterp_mcp.experiments.features.attribution import attribute_features
from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
from nnterp_mcp.experiments.patching.attribution_patching import compare_with_patches, estimate_effects
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.experiments.statistics.bootstrap import average_draws, estimate_mean
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.sites import Site
from nnterp_mcp.toolset.attribute.cells import (
    MOST_LISTED,
    cell_name,
    choose_listed,
    corrupted_text,
    describe_cells,
    describe_check,
    patched_effects,
)
from nnterp_mcp.toolset.attribute.features import estimate_features, find_placed, multiply_slopes
from nnterp_mcp.toolset.attribute.params import AttributeParams
from nnterp_mcp.toolset.attribute.result import AttributedPart, AttributeResult, LayerSum
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.pairs import make_pairs

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_CHECKED = 10
"""Strongest cells that are really patched."""

_MOST_CELLS = 50_000
_MOST_NEURONS = 1_000_000
_MOST_PASSES = 20_000

_COLUMNS = {
    "head": "attention",
    "attention": "attention",
    "attention bias": "attention",
    "neuron": "mlp",
    "mlp": "mlp",
    "mlp bias": "mlp",
    "rest": "rest",
    "layer": "rest",
}
"""To which sum of its layer each kind of part belongs."""

_SITES: dict[str, tuple[Site, ...]] = {
    "layer": ("layers_output",),
    "sublayer": ("attentions_output", "mlps_output"),
    "head": ("heads_output",),
    "neuron": ("neurons",),
}


def run(bench: Bench, params: AttributeParams, job: Job) -> AttributeResult:
    """Attributes by the method that was asked for."""
    prompts = bench.encode(params.prompts)
    targets = follow_target_sets(params.targets, len(prompts), bench.model)
    base = AttributeResult(
        model=bench.handle,
        method=params.method,
        by=params.parts,
        dictionary=params.dictionary,
        metric=_metric(params),
        prompts=[prompt.text for prompt in prompts],
        categories=targets[0].words,
        shared=targets[0].shared,
        in_force=[],
        whole=Measured(mean=0.0),
        parts=[],
        total=0,
        shown=params.top_k,
    )
    ways = {"direct": _direct, "gradient": _tokens, "integrated": _tokens, "patching": _patching}
    return ways[params.method](bench, params, job, prompts, targets, base)


def _metric(params: AttributeParams) -> str:
    if len(params.targets[0]) != 2 and params.method == "direct":
        return "logit"
    return default_metric(len(params.targets[0]))


def _ids(targets: Sequence[FollowedTargets]) -> list[list[list[int]]]:
    return [list(found.ids.values()) for found in targets]


def _direct(
    bench: Bench,
    params: AttributeParams,
    job: Job,
    prompts: Sequence[EncodedPrompt],
    targets: Sequence[FollowedTargets],
    base: AttributeResult,
) -> AttributeResult:
    split: Any = params.parts
    work = bench.workload(prompts, params.interventions, job)
    by_source = split == "source_token"
    if by_source:
        _require_few_sources(bench, params, prompts)
    ids = _ids(targets)
    main = [of_prompt[: 2 if len(of_prompt) == 2 else 1] for of_prompt in ids]
    alone = [[[of_prompt[at]] for of_prompt in ids] for at in range(len(ids[0]))] if len(ids[0]) > 1 else []
    if split == "feature":
        found, *each = attribute_features(bench.model, work, [main, *alone], find_placed(bench, params, job))
    else:
        found, *each = attribute_each(bench.model, work, [main, *alone], split, layers=params.layers)
    _keep_parts(job, found)
    listed = _by_source(found, each, prompts, bench) if by_source else _by_part(found, each)
    means = found.values.mean(0)
    total = sum(len(prompt.ids) for prompt in prompts) * len(_heads(found)) if by_source else len(found.parts)
    left = 0.0 if by_source else float(means.sum()) - sum(part.value.mean for part in listed)
    return base.model_copy(
        update={
            "in_force": list(work.plan.labels),
            "whole": _mean(found.metric),
            "error": found.error,
            "rescaled": found.rescaled,
            "parts": listed,
            "total": total,
            "layers": [] if split == "feature" else _sums(found.parts, means),
            "left": left if total > len(listed) else 0.0,
        }
    )


def _by_part(found: DirectLogits, each: Sequence[DirectLogits]) -> list[AttributedPart]:
    """The largest parts in the mean over prompts."""
    order = found.values.mean(0).abs().argsort(descending=True)[:MOST_LISTED].sort().values
    estimates = estimate_mean(found.values[:, order])
    columns = [dict(zip(one.parts, one.values.mean(0).tolist(), strict=True)) for one in each]
    parts = [found.parts[at] for at in order.tolist()]
    return [
        AttributedPart(
            kind=part.kind,
            layer=part.layer,
            index=part.index,
            value=Measured(mean=estimate.mean, low=estimate.low, high=estimate.high),
            logits=[column.get(part, 0.0) for column in columns],
        )
        for part, estimate in zip(parts, estimates, strict=True)
    ]


def _heads(found: DirectLogits) -> set[tuple[int | None, int | None]]:
    return {(part.layer, part.index) for part in found.parts if part.source is not None}


def _by_source(
    found: DirectLogits, each: Sequence[DirectLogits], prompts: Sequence[EncodedPrompt], bench: Bench
) -> list[AttributedPart]:
    """The largest contributions of a head from a token, prompt by prompt."""
    columns = [{part: at for at, part in enumerate(one.parts)} for one in each]
    amounts = [
        (abs(value), prompt, part, value)
        for prompt, values in enumerate(found.values.tolist())
        for part, value in zip(found.parts, values, strict=True)
        if part.source is not None and part.source < len(prompts[prompt].ids)
    ]
    return [
        AttributedPart(
            kind="head",
            layer=part.layer,
            index=part.index,
            source=part.source,
            prompt=prompt,
            token=token_text(bench.model.tokenizer, prompts[prompt].ids[part.source or 0]),
            value=Measured(mean=value),
            logits=[float(one.values[prompt, column[part]]) for one, column in zip(each, columns, strict=True)],
        )
        for _, prompt, part, value in sorted(amounts, key=lambda amount: -amount[0])[:MOST_LISTED]
    ]


def _require_few_sources(bench: Bench, params: AttributeParams, prompts: Sequence[EncodedPrompt]) -> None:
    layers = resolve_layers(params.layers, bench.model.num_layers, bench.handle)
    heads = sum(bench.model.anatomy.layers[layer].num_heads or 0 for layer in layers)
    pairs = heads * max(len(prompt.ids) for prompt in prompts)
    if pairs > _MOST_CELLS:
        raise LimitExceeded(
            f"{pairs} pairs of a head and a token, and at most {_MOST_CELLS} are told apart in a call.",
            "Give fewer layers or shorter prompts.",
        )


def _sums(parts: Sequence[LogitPart], means: Float[Tensor, " part"]) -> list[LayerSum]:
    """The contribution of each layer, in the mean over prompts."""
    sums: dict[int, dict[str, float]] = {}
    for part, mean in zip(parts, means.tolist(), strict=True):
        if part.layer is not None:
            found = sums.setdefault(part.layer, {})
            found[_COLUMNS[part.kind]] = found.get(_COLUMNS[part.kind], 0.0) + mean
    return [LayerSum(layer=layer, **found) for layer, found in sorted(sums.items())]


def _mean(values: Float[Tensor, " prompt"]) -> Measured:
    (estimate,) = estimate_mean(values[:, None].double())
    return Measured(mean=estimate.mean, low=estimate.low, high=estimate.high)


def _keep_parts(job: Job, found: DirectLogits) -> None:
    """Keeps every part of every prompt."""
    names = [
        " ".join(str(item) for item in (p.kind, p.layer, p.index, p.source) if item is not None) for p in found.parts
    ]
    job.keep("values", found.values.float(), {"prompt": list(range(len(found.values))), "part": names})


def _tokens(
    bench: Bench,
    params: AttributeParams,
    job: Job,
    prompts: Sequence[EncodedPrompt],
    targets: Sequence[FollowedTargets],
    base: AttributeResult,
) -> AttributeResult:
    work = bench.workload(prompts, params.interventions, job)
    metric = default_metric(len(params.targets[0]))
    if params.parts == "feature":
        placed = find_placed(bench, params, job)
        parts, whole, total = multiply_slopes(bench, work, _ids(targets), placed, metric, MOST_LISTED)
        labels = list(work.plan.labels)
        return base.model_copy(update={"in_force": labels, "whole": _mean(whole), "parts": parts, "total": total + 1})
    if params.method == "gradient":
        found = multiply_gradients(bench.model, work, _ids(targets), metric)
    else:
        total = len(prompts) * (params.steps + 2)
        if total > _MOST_PASSES:
            raise LimitExceeded(
                f"{total} passes (prompts × steps), and at most {_MOST_PASSES} are made in a call.",
                "Give fewer prompts or steps.",
            )
        found = integrate_gradients(bench.model, work, _ids(targets), metric, steps=params.steps)
    parts = _token_parts(found, prompts, bench)
    gaps = [abs(one.gap) for one in found if one.gap is not None]
    baselines = [one.baseline for one in found if one.baseline is not None]
    return base.model_copy(
        update={
            "in_force": list(work.plan.labels),
            "whole": _mean(torch.tensor([one.metric for one in found])),
            "base": _mean(torch.tensor(baselines)) if baselines else None,
            "error": max(gaps) if gaps else None,
            "missed": max((one.missed for one in found if one.missed is not None), default=None),
            "points": max((one.points for one in found if one.points is not None), default=None),
            "parts": parts,
            "total": len(parts),
        }
    )


def _token_parts(
    found: Sequence[TokenAttribution], prompts: Sequence[EncodedPrompt], bench: Bench
) -> list[AttributedPart]:
    return [
        AttributedPart(
            kind="token",
            index=at,
            prompt=prompt.index,
            token=token_text(bench.model.tokenizer, token),
            value=Measured(mean=value),
        )
        for prompt, one in zip(prompts, found, strict=True)
        for at, (token, value) in enumerate(zip(prompt.ids, one.values.tolist(), strict=True))
    ]


def _patching(
    bench: Bench,
    params: AttributeParams,
    job: Job,
    prompts: Sequence[EncodedPrompt],
    targets: Sequence[FollowedTargets],
    base: AttributeResult,
) -> AttributeResult:
    pairs, how = make_pairs(bench, params.prompts, params.corrupted, prompts)
    if params.parts == "feature":
        return _patching_features(bench, params, job, prompts, targets, base, pairs, how)
    units = "all" if params.parts in ("head", "neuron") else None
    grid = make_grid(bench.model, pairs, _SITES[params.parts], layers=params.layers, heads=units)
    most = _MOST_NEURONS if params.parts == "neuron" else _MOST_CELLS
    if len(grid.cells) > most:
        raise LimitExceeded(
            f"{len(grid.cells)} cells (sites × layers × {params.parts if units else 'position'}s), and at most {most} "
            "are estimated in a call.",
            "Give fewer layers or shorter prompts.",
        )
    patcher = Patcher(
        bench.model,
        pairs,
        grid,
        metric=default_metric(len(params.targets[0])),
        targets=_ids(targets),
    )
    work = bench.workload(prompts, (), job)
    found = estimate_effects(patcher, work)
    both = "pairs estimated and patches made"
    checked = replace(work, progress=lambda done, total, unit: job.progress(len(pairs) + done, None, both))
    compared = compare_with_patches(patcher, found, checked, _CHECKED)
    numbers = [pair.index for pair in pairs]
    effects = average_draws(found.effects, numbers)
    job.keep("estimates", effects, {"prompt": sorted(set(numbers)), "cell": [cell_name(cell) for cell in grid.cells]})
    made = patched_effects(compared)
    listed = choose_listed(grid, effects, made)
    parts = describe_cells(grid, effects, listed, pairs[0].clean.prompt, bench)
    for (at, effect), follows in zip(made.items(), [] if compared is None else compared.by_construction, strict=True):
        part = parts[listed.index(at)]
        part.patched, part.by_construction = effect, bool(follows)
    return base.model_copy(
        update={
            **_between(found.clean, found.corrupted, pairs, how),
            "parts": parts,
            "total": len(grid.cells),
            "checked": describe_check(compared),
        }
    )


def _between(
    clean: Float[Tensor, " pair"], corrupted: Float[Tensor, " pair"], pairs: Sequence[Pair], how: str
) -> dict[str, Any]:
    """The fields that say between which runs the metric is attributed."""
    numbers = [pair.index for pair in pairs]
    return {
        "whole": _mean(average_draws(clean, numbers)),
        "base": _mean(average_draws(corrupted, numbers)),
        "corruption": how,
        "against": corrupted_text(pairs[0]),
    }


def _patching_features(
    bench: Bench,
    params: AttributeParams,
    job: Job,
    prompts: Sequence[EncodedPrompt],
    targets: Sequence[FollowedTargets],
    base: AttributeResult,
    pairs: Sequence[Pair],
    how: str,
) -> AttributeResult:
    placed, work = find_placed(bench, params, job), bench.workload(prompts, (), job)
    everywhere = {"all": (("all",), ("all",))}  # prompts may have different lengths
    grid = make_grid(bench.model, pairs, ["layers_output"], layers=[0], positions=everywhere)
    metric = default_metric(len(params.targets[0]))
    patcher = Patcher(bench.model, pairs, grid, metric=metric, targets=_ids(targets))
    found = estimate_features(bench, work, patcher, placed, params.dictionary or "", MOST_LISTED, _CHECKED)
    return base.model_copy(
        update={
            **_between(found.clean, found.corrupted, pairs, how),
            "parts": found.parts,
            "total": found.total,
            "checked": found.checked,
        }
    )
