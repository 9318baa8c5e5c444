"""`compare_models` in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from nnterp_mcp.engine.edits import Added, StateEdit
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.comparison.activations import (
    ActivationChange,
    compare_activations,
    correspond,
    require_same_build,
    shared_places,
)
from nnterp_mcp.experiments.comparison.exchange_grid import patch_across
from nnterp_mcp.experiments.comparison.predictions import (
    PredictionChange,
    compare_predictions,
    require_same_tokens,
)
from nnterp_mcp.experiments.comparison.random_change import change_at_random
from nnterp_mcp.experiments.comparison.weights import WeightChange, compare_weights
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.compare_models.params import PARTS, CompareModelsParams
from nnterp_mcp.toolset.compare_models.result import (
    CellPatched,
    CompareModelsResult,
    LayerDifference,
    ModuleChanged,
    PlaceChanged,
    PositionChanged,
    TextPair,
)
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.worker.workbench import Bench

_TEXTS, _CHARACTERS = 8, 160
"""Neutral texts, and how much of each is read."""

_TOKENS = 256
"""Tokens of a batch: logits of two models at all of them are in memory at once."""

_CONTINUED, _PATCHED = 3, 2
"""Prompts that are continued, and that are patched."""

_NEW_TOKENS = 20
_OF_ANY_TWO = ("predictions", "texts")
"""Parts that need a common tokenizer alone."""

_APART = 1e-5
"""The divergence in nats from which on a prompt is patched: below it there is nothing to recover."""


def run(bench: Bench, params: CompareModelsParams, job: Job) -> CompareModelsResult:
    """Compares the parts that are asked for, the cheap ones first."""
    return _Comparison.of(bench, params, job).run()


@dataclass
class _Comparison:
    bench: Bench
    params: CompareModelsParams
    job: Job
    base: StandardizedTransformer
    name: str
    prompts: list[EncodedPrompt]
    neutral: list[EncodedPrompt]
    changes: dict[Place, ActivationChange] = field(default_factory=dict)

    @classmethod
    def of(cls, bench: Bench, params: CompareModelsParams, job: Job) -> _Comparison:
        base, name = bench.find_base(params.base)
        texts = [text[:_CHARACTERS] for text in TEXTS[:_TEXTS]]
        neutral = encode_prompts(bench.model.tokenizer, texts, bench.handle)
        prompts = neutral if params.prompts is None else bench.encode(params.prompts)
        given = texts if params.prompts is None else params.prompts
        require_same_tokens(prompts, encode_prompts(base.tokenizer, given, name), (bench.handle, name))
        require_same_tokens(neutral, encode_prompts(base.tokenizer, texts, name), (bench.handle, name))
        return cls(bench, params, job, base, name, prompts, neutral)

    def work(self, prompts: Sequence[EncodedPrompt], what: str) -> Workload:
        return Workload(
            prompts,
            batch_tokens=min(_TOKENS, self.bench.batch_tokens),
            progress=lambda done, total, unit: self.job.progress(done, total, f"{unit} ({what})"),
        )

    def asks(self, *parts: str) -> bool:
        return any(part in self.parts for part in parts)

    @cached_property
    def parts(self) -> list[str]:
        """The parts that are compared: of models that are built otherwise only what they predict and write."""
        alike = correspond(self.base, self.bench.model)
        parts = [part for part in self.params.parts or PARTS if alike or part in _OF_ANY_TWO]
        if not parts:
            require_same_build(self.base, self.bench.model)
        return parts

    def run(self) -> CompareModelsResult:
        base, model = self.base, self.bench.model
        result = CompareModelsResult(
            model=self.bench.handle,
            base=self.name,
            prompts=[prompt.text for prompt in self.prompts],
            neutral=self.params.prompts is None,
            parts=self.parts,
            left_out=[part for part in self.params.parts or PARTS if part not in self.parts],
        )
        self.job.partial = lambda: result
        controlled = self.asks("predictions", "activations") and correspond(base, model)
        weights = compare_weights(base.module, model.module) if controlled or self.asks("weights") else []
        if self.asks("weights"):
            result.modules = [_module(change) for change in weights]
        control: StandardizedTransformer | None = None
        if weights and controlled:
            drawn, result.uncontrolled = change_at_random(base, weights)
            control = drawn if result.uncontrolled < len(weights) else None
        if self.asks("predictions"):
            result.positions = self._positions(control)
        if self.asks("activations"):
            result.places = self._places(control)
        if self.asks("difference"):
            result.differences = self._differences()
        if self.asks("texts"):
            result.texts, result.steered_layer = self._texts(result)
        if self.asks("patching"):
            result.cells, result.patched = self._cells()
        return result

    def _positions(self, control: StandardizedTransformer | None) -> list[PositionChanged]:
        work = self.work(self.prompts, "predictions")
        found = compare_predictions(self.base, self.bench.model, work)
        randoms = compare_predictions(self.base, control, work) if control is not None else [None] * len(found)
        return [
            self._position(prompt, at, change, random)
            for prompt, change, random in zip(self.prompts, found, randoms, strict=True)
            for at in range(len(prompt.ids))
        ]

    def _position(
        self, prompt: EncodedPrompt, at: int, change: PredictionChange, random: PredictionChange | None
    ) -> PositionChanged:
        def said(token: int) -> str:
            return token_text(self.bench.model.tokenizer, token)

        return PositionChanged(
            prompt=prompt.index,
            position=at,
            token=said(prompt.ids[at]),
            kl=float(change.divergence[at]),
            base_top=said(int(change.base_top[at])),
            base_p=float(change.base_p[at]),
            top=said(int(change.top[at])),
            p=float(change.p[at]),
            random=None if random is None else float(random.divergence[at]),
        )

    def _compared(self, prompts: Sequence[EncodedPrompt], what: str) -> dict[Place, ActivationChange]:
        found = compare_activations(self.base, self.bench.model, self.work(prompts, what))
        return {change.place: change for change in found}

    def _places(self, control: StandardizedTransformer | None) -> list[PlaceChanged]:
        found = self._compared(self.prompts, "activations")
        if self.params.prompts is None:
            self.changes = found
        randoms: Mapping[Place, ActivationChange] = {}
        if control is not None:
            drawn = compare_activations(self.base, control, self.work(self.prompts, "activations, control"))
            randoms = {change.place: change for change in drawn}
        return [_place(change, randoms.get(place)) for place, change in found.items()]

    def _mean_differences(self) -> dict[Place, ActivationChange]:
        self.changes = self.changes or self._compared(self.neutral, "mean difference")
        return {place: change for place, change in self.changes.items() if place.site == "layers_output"}

    def _differences(self) -> list[LayerDifference]:
        model, found = self.bench.model, list(self._mean_differences().values())
        means = torch.stack([change.mean_difference for change in found])
        layers = [int(change.place.layer or 0) for change in found]
        self.job.keep("mean_difference", means, {"layer": layers, "unit": range(means.shape[1])})
        with torch.inference_mode():
            logits = model.project_on_vocab(means.to(model.device, model.computing_dtype)).float()
        tops = logits.softmax(-1).topk(8, dim=-1)
        return [
            LayerDifference(
                layer=int(change.place.layer or 0),
                size=float(mean.norm()) * change.tokens / max(change.norms, 1e-30),
                top=[
                    (token_text(model.tokenizer, int(token)), float(p)) for p, token in zip(values, tokens, strict=True)
                ]
                if bool(mean.any())
                else [],
            )
            for change, mean, values, tokens in zip(found, means, tops.values, tops.indices, strict=True)
        ]

    def _texts(self, result: CompareModelsResult) -> tuple[list[TextPair], int | None]:
        prompts = self.prompts[:_CONTINUED]
        plain = [self._continue(model, prompts, NOTHING) for model in (self.base, self.bench.model)]
        sized = [one for one in result.differences if one.size > 0]
        if not sized:
            return [TextPair(prompt=n, base=a, model=b) for n, (a, b) in enumerate(zip(*plain, strict=True))], None
        half = self.base.num_layers // 2
        layer = next((one.layer for one in sized if one.layer >= half), sized[-1].layer)
        place = Place("layers_output", layer)
        vector = self._mean_differences()[place].mean_difference
        reach = Reach({prompt.index: range(len(prompt.ids) + _NEW_TOKENS) for prompt in prompts})
        plan = Plan({place: [StateEdit(place, reach, Added(vector, "the mean difference", place))]})
        steered = self._continue(self.base, prompts, plan)
        rows = enumerate(zip(*plain, steered, strict=True))
        return [TextPair(prompt=n, base=a, model=b, steered=c) for n, (a, b, c) in rows], layer

    def _continue(self, model: StandardizedTransformer, prompts: Sequence[EncodedPrompt], plan: Plan) -> list[str]:
        work = Workload(prompts, plan, self.bench.batch_tokens, lambda *_: self.job.check())
        found = generate(model, work, max_new_tokens=_NEW_TOKENS)
        return [str(model.tokenizer.decode(one.ids, skip_special_tokens=True)) for one in found]

    def _cells(self) -> tuple[list[CellPatched], list[int]]:
        base, model = self.base, self.bench.model
        places = shared_places(base, model)
        sums, patched = torch.zeros(2, len(places)), list[int]()
        for prompt in self.prompts:
            if len(patched) == _PATCHED:
                break
            work = self.work([prompt], "patching")
            pairs = [patch_across(*pair, prompt, places, work) for pair in ((model, base), (base, model))]
            if min(apart for apart, _ in pairs) < _APART:
                continue
            sums += torch.stack([1 - values / apart for apart, values in pairs])
            patched.append(prompt.index)
        if not patched:
            return [], []
        means = (sums / len(patched)).tolist()
        return [
            CellPatched(site=place.site, layer=int(place.layer or 0), into_base=into_base, into_model=into_model)
            for place, into_base, into_model in zip(places, *means, strict=True)
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


def _place(change: ActivationChange, random: ActivationChange | None) -> PlaceChanged:
    stream = change.place.site == "layers_output"
    return PlaceChanged(
        site=change.place.site,
        layer=int(change.place.layer or 0),
        change=change.mean(change.change),
        cosine=change.mean(change.cosine),
        made=change.mean(change.made) if stream else None,
        came=change.mean(change.came) if stream else None,
        random=None if random is None else random.mean(random.change),
    )
