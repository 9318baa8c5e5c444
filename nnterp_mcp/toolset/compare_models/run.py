"""`compare_models` in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.comparison.activations import ActivationChange, compare_activations, shared_places
from nnterp_mcp.experiments.comparison.exchange_grid import patch_across
from nnterp_mcp.experiments.comparison.predictions import PredictionChange, compare_predictions
from nnterp_mcp.experiments.comparison.random_change import change_at_random
from nnterp_mcp.experiments.comparison.sides import AlignedPrompt, ComparedModel
from nnterp_mcp.experiments.comparison.weights import WeightChange, compare_weights
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.operations import describe
from nnterp_mcp.toolset.compare_models.differences import MeanDifferences, read_differences, steer_base, write_texts
from nnterp_mcp.toolset.compare_models.models import Compared, find_models, other_adapters, plan_control
from nnterp_mcp.toolset.compare_models.params import PARTS, CompareModelsParams
from nnterp_mcp.toolset.compare_models.result import (
    CellPatched,
    CompareModelsResult,
    ModuleChanged,
    PlaceChanged,
    PositionChanged,
)
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_TOKENS = 256
"""Tokens of a batch, at most."""

_LOGITS = 1 << 24
"""Logits of a batch, at most: those of two models at all its tokens are in memory at once."""

_PATCHED = 2
"""Prompts that are patched."""

_APART = 1e-5
"""The divergence in nats from which on a prompt is patched: below it there is nothing to recover."""


def run(bench: Bench, params: CompareModelsParams, job: Job) -> CompareModelsResult:
    """Compares the parts that are asked for, the cheap ones first."""
    return _Comparison(bench, params, job, find_models(bench, params)).run()


@dataclass
class _Comparison:
    bench: Bench
    params: CompareModelsParams
    job: Job
    compared: Compared

    def work(self, what: str) -> Workload:
        """The size of batches; progress says what is compared."""
        return Workload(
            (),
            batch_tokens=min(_TOKENS, self.bench.batch_tokens, max(1, _LOGITS // self.bench.model.vocab_size)),
            progress=lambda done, total, unit: self.job.progress(done, total, f"{unit} ({what})"),
        )

    def run(self) -> CompareModelsResult:
        compared, asked = self.compared, self.params.parts or PARTS
        base, model, other = compared.names
        result = CompareModelsResult(
            model=model,
            base=base,
            other=other,
            others=other_adapters(self.bench, compared),
            prompts=[prompt.model.text for prompt in compared.prompts],
            neutral=self.params.prompts is None,
            interventions=[describe(operation) for operation in self.params.interventions],
            parts=compared.parts,
            left_out=[part for part in asked if part not in compared.parts],
            by_text=compared.by_text,
        )
        self.job.partial = lambda: result
        if compared.asks("weights"):
            result.modules = [_module(change) for change in self.weights]
        control, result.uncontrolled = self._random_change()
        if compared.asks("predictions"):
            result.positions = self._positions(control)
        if compared.asks("activations"):
            result.places = self._places(control)
        if compared.asks("difference"):
            result.differences, result.scoped = read_differences(self.bench, self.job, compared, self.means)
            result.steering, result.steered_layer = steer_base(compared, self.means, self.work("steering"))
        if compared.asks("texts"):
            write_texts(self.bench, self.job, compared, self.means if result.differences else None, result)
        if compared.asks("patching"):
            result.cells, result.patched = self._cells()
        return result

    @cached_property
    def weights(self) -> list[WeightChange]:
        return compare_weights(self.compared.base.model.module, self.compared.model.model.module)

    @cached_property
    def means(self) -> MeanDifferences:
        """The mean differences on neutral text, without interventions."""
        compared = self.compared
        sides = [ComparedModel(one.model) for one in (compared.model, compared.other) if one is not None]
        found = [
            self._compare(ComparedModel(compared.base.model), one, compared.neutral, "mean difference") for one in sides
        ]
        return MeanDifferences(found[0], found[1] if len(found) > 1 else None)

    def _compare(
        self, base: ComparedModel, model: ComparedModel, prompts: Sequence[AlignedPrompt], what: str
    ) -> dict[Place, ActivationChange]:
        return {change.place: change for change in compare_activations(base, model, prompts, self.work(what))}

    def _random_change(self) -> tuple[ComparedModel | None, int]:
        """The base with a random change of equal norm and rank, and how many weights it leaves out."""
        compared = self.compared
        if not (compared.alike and compared.asks("predictions", "activations") and self.weights):
            return None, 0
        drawn, left = change_at_random(compared.base.model, self.weights)
        whole = left == len(self.weights)
        return None if whole else plan_control(self.bench, self.params, drawn, compared.prompts), left

    def _positions(self, control: ComparedModel | None) -> list[PositionChanged]:
        compared = self.compared
        base, prompts = compared.base, compared.prompts
        found = compare_predictions(base, compared.model, prompts, self.work("predictions"))
        beside = [
            [None] * len(found) if one is None else compare_predictions(base, one, prompts, self.work(what))
            for one, what in ((control, "predictions, control"), (compared.other, "predictions, other"))
        ]
        return [
            position
            for prompt, change, random, other in zip(prompts, found, *beside, strict=True)
            for position in self._of_prompt(prompt, change, random, other)
        ]

    def _of_prompt(
        self,
        prompt: AlignedPrompt,
        change: PredictionChange,
        random: PredictionChange | None,
        other: PredictionChange | None,
    ) -> list[PositionChanged]:
        tokenizers = self.compared.base.model.tokenizer, self.compared.model.model.tokenizer
        ends = prompt.ends
        made: list[PositionChanged] = []
        for row, (_, at) in enumerate(prompt.pairs):
            count = 0 if ends is None or row + 1 == len(ends) else ends[row + 1] - ends[row]
            made.append(
                PositionChanged(
                    prompt=prompt.model.index,
                    position=at,
                    token=token_text(tokenizers[1], prompt.model.ids[at]),
                    kl=float(change.divergence[row]),
                    base_top=token_text(tokenizers[0], int(change.base_top[row])),
                    base_p=float(change.base_p[row]),
                    top=token_text(tokenizers[1], int(change.top[row])),
                    p=float(change.p[row]),
                    changed=bool(change.changed[row]),
                    random=None if random is None else float(random.divergence[row]),
                    other=None if other is None else float(other.divergence[row]),
                    base_bits=float(change.base_surprise[row]) / count if count > 0 else None,
                    bits=float(change.surprise[row]) / count if count > 0 else None,
                    characters=count if count > 0 else None,
                    base_shared=float(change.base_shared[row]),
                    shared=float(change.shared[row]),
                )
            )
        return made

    def _places(self, control: ComparedModel | None) -> list[PlaceChanged]:
        compared = self.compared
        found, randoms, others = (
            {} if one is None else self._compare(compared.base, one, compared.prompts, what)
            for one, what in (
                (compared.model, "activations"),
                (control, "activations, control"),
                (compared.other, "activations, other"),
            )
        )
        return [_place(change, randoms, others) for change in found.values()]

    def _cells(self) -> tuple[list[CellPatched], list[int]]:
        compared = self.compared
        base, model, other = compared.base, compared.model, compared.other
        places = shared_places(base.model, model.model)
        kinds = [(model, base, None), (base, model, None), *([(other, base, model)] if other is not None else [])]
        sums, patched = torch.zeros(len(kinds), len(places)), list[int]()
        for prompt in compared.prompts:
            if len(patched) == _PATCHED:
                break
            work = self.work("patching")
            pairs = [patch_across(*kind[:2], prompt.model, places, work, kind[2]) for kind in kinds]
            if min(apart for apart, _ in pairs) < _APART:
                continue
            sums += torch.stack([1 - values / apart for apart, values in pairs])
            patched.append(prompt.model.index)
        if not patched:
            return [], []
        rows = (sums / len(patched)).T.tolist()
        return [
            CellPatched(
                site=place.site,
                layer=int(place.layer or 0),
                into_base=row[0],
                into_model=row[1],
                other=row[2] if len(row) > 2 else None,
            )
            for place, row in zip(places, rows, strict=True)
        ], patched


def _module(change: WeightChange) -> ModuleChanged:
    return ModuleChanged(
        module=change.path,
        shape=list(change.shape),
        norm=change.norm,
        relative=change.relative,
        rank=change.rank,
        spectrum=list(change.spectrum),
    )


def _place(
    change: ActivationChange, randoms: Mapping[Place, ActivationChange], others: Mapping[Place, ActivationChange]
) -> PlaceChanged:
    place = change.place
    random, other = (found[place].mean(found[place].change) if place in found else None for found in (randoms, others))
    return PlaceChanged(
        site=place.site,
        layer=int(place.layer or 0),
        change=change.mean(change.change),
        cosine=change.mean(change.cosine),
        made=change.mean(change.made) if change.split else None,
        came=change.mean(change.came) if change.split else None,
        random=random,
        other=other,
    )
