"""The mean difference on unrelated text in a comparison: its readings, the base steered with it, and texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.comparison.activations import ActivationChange
from nnterp_mcp.experiments.comparison.mean_difference import (
    TopTokens,
    read_by_lens,
    read_by_patchscope,
    steer_towards,
    with_addition,
)
from nnterp_mcp.experiments.comparison.sides import ComparedModel
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.compare_models.models import Compared
from nnterp_mcp.toolset.compare_models.result import CompareModelsResult, LayerDifference, Steered, TextPair
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_SHOWN = 8
"""Tokens that are kept of each reading."""

_STRENGTHS = (0.5, 1.0, 2.0, 4.0)
_DRAWS = 3
"""Random directions of the length of the mean difference."""

_CONTINUED, _NEW_TOKENS = 3, 20
"""Prompts that are continued and steered, and for how long."""


@dataclass(frozen=True)
class MeanDifferences:
    """The change of activations on neutral text, of the model and of another fine-tune."""

    model: Mapping[Place, ActivationChange]
    other: Mapping[Place, ActivationChange] | None

    @property
    def stream(self) -> list[ActivationChange]:
        """The change of the output of each layer."""
        return [change for place, change in self.model.items() if place.site == "layers_output"]

    def steered(self, num_layers: int) -> ActivationChange | None:
        """The change of the first layer from the middle on that differs, or else of the last that does."""
        differing = [change for change in self.stream if bool(change.difference.any())]
        late = (change for change in differing if int(change.place.layer or 0) >= num_layers // 2)
        return next(late, differing[-1] if differing else None)


def read_differences(
    bench: Bench, job: Job, compared: Compared, means: MeanDifferences
) -> tuple[list[LayerDifference], list[tuple[str, float]]]:
    """Each layer's mean difference over all positions, then over the first ones, read by the lens and a patchscope."""
    model, found = compared.model.model, means.stream
    layers = [int(change.place.layer or 0) for change in found]
    vectors = [
        torch.stack(rows) for rows in zip(*((c.mean_difference, c.early_difference) for c in found), strict=True)
    ]
    for name, rows in zip(("mean_difference", "early_difference"), vectors, strict=True):
        job.keep(name, rows, {"layer": layers, "unit": range(rows.shape[1])})
    both = torch.cat(vectors)
    sizes = [float(c.mean_difference.norm()) * c.tokens / max(c.norms, 1e-30) for c in found]
    sizes += [float(c.early_difference.norm()) * c.early_tokens / max(c.early_norms, 1e-30) for c in found]
    differing = [row for row in range(len(both)) if bool(both[row].any())]
    lens, scope, scoped = dict[int, TopTokens](), dict[int, TopTokens](), TopTokens()
    if differing:
        chosen = both[differing]
        lens = dict(zip(differing, read_by_lens(model, chosen, _SHOWN), strict=True))
        into = [layers[row % len(layers)] for row in differing]
        patched, scoped = read_by_patchscope(model, chosen, into, _SHOWN, bench.batch_tokens)
        scope = dict(zip(differing, patched, strict=True))

    def named(tops: TopTokens) -> list[tuple[str, float]]:
        return [(token_text(model.tokenizer, token), p) for token, p in tops]

    cosines = _cosines(means, both)
    return [
        LayerDifference(
            layer=layers[row % len(layers)],
            early=row >= len(layers),
            size=sizes[row],
            top=named(lens.get(row, [])),
            scope=named(scope.get(row, [])),
            other=None if cosines is None else cosines[row],
        )
        for row in range(len(both))
    ], named(scoped)


def _cosines(means: MeanDifferences, both: Tensor) -> list[float] | None:
    """The cosine of each difference with that of the other fine-tune."""
    if means.other is None:
        return None
    others = [means.other[change.place] for change in means.stream]
    rows = torch.stack([*(c.mean_difference for c in others), *(c.early_difference for c in others)])
    return torch.cosine_similarity(both, rows, dim=-1).tolist()


def steer_base(compared: Compared, means: MeanDifferences, work: Workload) -> tuple[list[Steered], int | None]:
    """The base with multiples of the mean difference, against random directions; and the layer after which."""
    change = means.steered(compared.base.model.num_layers)
    if change is None:
        return [], None
    layer = int(change.place.layer or 0)
    if not compared.alike:
        return [], layer
    prompts = [prompt.model for prompt in compared.prompts[:_CONTINUED]]
    plain, effects = steer_towards(
        compared.base,
        compared.model,
        prompts,
        change.place,
        change.mean_difference,
        _STRENGTHS,
        _DRAWS,
        work,
    )
    found = [Steered(strength=one.strength, kl=one.kl, random=one.random) for one in effects]
    return [Steered(strength=0.0, kl=plain, random=plain), *found], layer


def write_texts(
    bench: Bench, job: Job, compared: Compared, means: MeanDifferences | None, result: CompareModelsResult
) -> None:
    """Continues prompts with every model, and with the base that is steered by what came closest to the model."""
    prompts = compared.prompts[:_CONTINUED]

    def write(side: ComparedModel, of_base: bool = False) -> list[str]:
        encoded = [prompt.base if of_base else prompt.model for prompt in prompts]
        work = Workload(encoded, side.plan, bench.batch_tokens, lambda *_: job.check())
        found = generate(side.model, work, max_new_tokens=_NEW_TOKENS)
        return [str(side.model.tokenizer.decode(one.ids, skip_special_tokens=True)) for one in found]

    steered, other = list[str](), list[str]()
    change = None if means is None else means.steered(compared.base.model.num_layers)
    if change is not None:
        tried = result.steering[1:]
        strength = min(tried, key=lambda one: one.kl).strength if tried else 1.0
        vector = strength * change.mean_difference
        result.steered_strength = strength
        own = [prompt.base for prompt in prompts]
        steered = write(with_addition(compared.base, own, change.place, vector), of_base=True)
    if compared.other is not None:
        other = write(compared.other)
    result.texts = [
        TextPair(
            prompt=number,
            base=base,
            model=model,
            steered=steered[number] if steered else None,
            other=other[number] if other else None,
        )
        for number, (base, model) in enumerate(
            zip(write(compared.base, of_base=True), write(compared.model), strict=True)
        )
    ]
