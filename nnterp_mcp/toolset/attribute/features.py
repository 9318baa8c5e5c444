"""`attribute` by feature: a dictionary's features in place of the states that it reconstructs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.readouts.metrics import MetricName
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.attribution import PlacedDictionary, find_slopes
from nnterp_mcp.experiments.features.basis import basis_of
from nnterp_mcp.experiments.features.patching import FeaturePatcher, estimate_feature_effects
from nnterp_mcp.experiments.patching.activation_patching import Patcher
from nnterp_mcp.experiments.patching.attribution_patching import correlate
from nnterp_mcp.experiments.statistics.bootstrap import average_draws, estimate_mean
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.attribute.params import AttributeParams
from nnterp_mcp.toolset.attribute.result import AttributedPart, Checked
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def find_placed(bench: Bench, params: AttributeParams, job: Job) -> PlacedDictionary:
    """The dictionary that a call names; of several layers that of `layers`.

    Raises:
        InvalidRequest: There is none, or `layers` names several.
    """
    assert params.dictionary is not None
    layer = None
    if params.layers != "all":
        chosen = resolve_layers(params.layers, bench.model.num_layers, bench.handle)
        if len(chosen) != 1:
            raise InvalidRequest(f"features of one layer are attributed to in a call, and layers names {len(chosen)}.")
        (layer,) = chosen
    loaded = bench.dictionaries.find(params.dictionary, layer, job.tell)
    return PlacedDictionary(loaded.dictionary, loaded.place, loaded.writes)


@dataclass(frozen=True)
class PatchedFeatures:
    """Estimated effects of patching single features, with real patches of some.

    Attributes:
        parts: The features with the largest estimates, and those that were patched.
        clean: The metric of each clean run.
        corrupted: That of each corrupted run.
        total: How many features differ between the runs.
        checked: The check; None where none does.
    """

    parts: list[AttributedPart]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    total: int
    checked: Checked | None


def estimate_features(
    bench: Bench, work: Workload, patcher: Patcher, placed: PlacedDictionary, name: str, listed: int, checked: int
) -> PatchedFeatures:
    """Estimates the patch of every feature, and patches the strongest and as many others.

    Args:
        bench: The model.
        work: The prompts.
        patcher: The question.
        placed: The dictionary.
        name: Its name.
        listed: Features that are described, at most.
        checked: How many of the strongest are patched.
    """
    patching = FeaturePatcher(patcher, basis_of(bench.model, name, placed.made, placed.place, placed.out))
    found = estimate_feature_effects(patching, placed, work)
    effects = average_draws(found.effects, [pair.index for pair in patcher.pairs])
    mean = effects.mean(0)
    differing = mean.nonzero()[:, 0].tolist()
    order = sorted(differing, key=lambda at: -abs(float(mean[at])))
    first = order[:checked]
    chosen = first + random.Random(0).sample(order[checked:], min(checked, len(order) - len(first)))
    patched = patching.patch([[one] for one in chosen], work) if chosen else None
    done: dict[int, float] = {}
    check = None
    if patched is not None:
        own = patched.clean if patcher.direction == "noising" or patched.corrupted is None else patched.corrupted
        real = (patched.values - own[:, None]).mean(0)
        done = dict(zip(chosen, real.tolist(), strict=True))
        pearson, agreement = correlate(mean[chosen], real, len(first))
        check = Checked(cells=len(chosen), strongest=len(first), pearson=pearson, agreement=agreement)
    shown = sorted({*order[:listed], *chosen})
    layer = placed.written.layer
    parts = [
        AttributedPart(
            kind="feature",
            layer=layer,
            index=feature,
            value=Measured(mean=estimate.mean, low=estimate.low, high=estimate.high),
            patched=done.get(feature),
        )
        for feature, estimate in zip(shown, estimate_mean(effects[:, shown].double()) if shown else [], strict=True)
    ]
    return PatchedFeatures(parts, found.clean, found.corrupted, len(differing), check)


def multiply_slopes(
    bench: Bench,
    work: Workload,
    targets: Sequence[Sequence[Sequence[int]]],
    placed: PlacedDictionary,
    metric: MetricName,
    listed: int,
) -> tuple[list[AttributedPart], Float[Tensor, " prompt"], int]:
    """Activation times slope of each feature, summed over tokens.

    Args:
        bench: The model.
        work: The prompts.
        targets: Token ids for each prompt.
        placed: The dictionary.
        metric: The metric.
        listed: Features that are described, at most.

    Returns:
        The parts, the metric of each prompt, and the number of features that are active.
    """
    found = find_slopes(bench.model, work, targets, placed, metric)
    sums = torch.stack([one.products.sum(0) for one in found]).double().cpu()
    active = torch.stack([(one.features != 0).any(0) for one in found]).any(0).cpu().nonzero()[:, 0]
    order = active[sums[:, active].mean(0).abs().argsort(descending=True)][:listed].sort().values
    columns = torch.cat([sums[:, order], torch.tensor([[one.error] for one in found], dtype=torch.float64)], 1)
    layer = placed.written.layer
    kinds = [*(("feature", feature) for feature in order.tolist()), ("reconstruction error", None)]
    parts = [
        AttributedPart(
            kind=kind,
            layer=layer,
            index=index,
            value=Measured(mean=estimate.mean, low=estimate.low, high=estimate.high),
        )
        for (kind, index), estimate in zip(kinds, estimate_mean(columns), strict=True)
    ]
    return parts, torch.tensor([one.metric for one in found]), len(active)
