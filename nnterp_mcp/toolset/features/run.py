"""`features` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnterp_mcp.contract import DominantToken
from nnterp_mcp.experiments.features.activity import Activity, Difference, compare_prompts, read_activity
from nnterp_mcp.experiments.features.effects import LogitEffects, find_logit_effects, find_nearest, writes_to_stream
from nnterp_mcp.model.text.positions import resolve_averaged
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.features.params import FeaturesParams
from nnterp_mcp.toolset.features.result import (
    ActiveFeature,
    ActiveToken,
    FeatureReading,
    FeaturesResult,
    LogitEffect,
    NearFeature,
    TokenReading,
)
from nnterp_mcp.worker.dictionaries import LoadedDictionary
from nnterp_mcp.worker.dominance import name_dominant
from nnterp_mcp.worker.feature_labels import labels_of
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.worker.workbench import Bench

_CHOSEN = 50
"""Features that a result describes, where none are named."""

_TOKENS = 10
"""Tokens that it names for each, and for the effect of each on the logits."""

_NEAREST = 5
_MATCHED = 5
_AT_TOKEN = 5
"""Features that it names for each token."""

_MOST_CELLS = 10_000_000
"""Activations by feature and token that are recorded as an array, at most."""


def run(bench: Bench, params: FeaturesParams, job: Job) -> FeaturesResult:
    """Encodes the states of the prompts, chooses features, and describes them."""
    loaded = bench.dictionaries.find(params.dictionary, params.layer, job.tell)
    loaded.require(params.features)
    sizes = [len(group) for group in params.prompts.values()]
    prompts = bench.encode([prompt for group in params.prompts.values() for prompt in group]) if sizes else []
    work = bench.workload(prompts, params.interventions, job)
    found, apart = None, None
    if prompts:
        positions = [resolve_averaged(params.positions, prompt) for prompt in prompts]
        found = read_activity(bench.model, work, loaded.dictionary, loaded.place, loaded.writes, positions)
        if len(sizes) == 2:
            apart = compare_prompts(found.means(), range(sizes[0]), range(sizes[0], sum(sizes)))
    described = _Described(bench.model, loaded, found, prompts, sizes)
    chosen = list(dict.fromkeys(params.features)) or described.strongest(apart)
    labels = labels_of(loaded.labels, chosen, bench.settings)
    result = FeaturesResult(
        model=bench.handle,
        dictionary=params.dictionary,
        place=str(loaded),
        latents=loaded.dictionary.latents,
        named=bool(params.features),
        groups=list(params.prompts),
        prompts=sizes,
        active=0 if found is None else int((found.shares() > 0).sum()),
        l0=None if found is None else found.l0,
        error=None if found is None else float(found.errors.mean()),
        shuffled=None if apart is None else apart.shuffled,
        norm=_final_norm(bench.model),
        first_left_out=bool(prompts) and "all" in params.positions,
        dominant=None if found is None else _dominant(bench, params, loaded, found),
        labels=labels and labels.source,
        unlabelled=labels and labels.fault,
        interventions=list(work.plan.labels),
        features=[
            feature.model_copy(update={"label": labels.of.get(feature.feature)}) if labels else feature
            for feature in described.features(chosen)
        ],
        at_tokens=described.tokens(),
    )
    if found is not None and 0 < len(chosen) * len(found.prompts) <= _MOST_CELLS:
        names = [f"{token.prompt}:{token.position} {token.token}" for token in result.at_tokens]
        job.keep("activations", found.rows(chosen), {"feature": chosen, "token": names})
    return result


def _dominant(bench: Bench, params: FeaturesParams, loaded: LoadedDictionary, found: Activity) -> DominantToken | None:
    """The token whose state is so long that the means of features may be its own."""
    owners = [(group, at) for group, prompts in params.prompts.items() for at in range(len(prompts))]
    at_tokens = zip(found.prompts.tolist(), found.positions.tolist(), strict=True)
    tokens = [(*owners[prompt], position) for prompt, position in at_tokens]
    return name_dominant(bench, found.norms[:, None], tokens, [loaded.place.layer], params.prompts)


def _final_norm(model: StandardizedTransformer) -> str | None:
    norm = model.anatomy.ln_final
    return None if norm is None else type(norm.module).__name__


class _Described:
    """Features and tokens as a result has them."""

    def __init__(
        self,
        model: StandardizedTransformer,
        loaded: LoadedDictionary,
        found: Activity | None,
        prompts: Sequence[EncodedPrompt],
        sizes: Sequence[int],
    ) -> None:
        self._model = model
        self._loaded = loaded
        self._found = found
        self._prompts = prompts
        self._means = [] if found is None else [part.mean(0) for part in found.means().split(list(sizes))]

    def strongest(self, apart: Difference | None) -> list[int]:
        """The features with the largest means, or of two groups the largest differences of means."""
        if not self._means:
            return []
        ranked = self._means[0] if apart is None else apart.means.abs()
        top = ranked.topk(min(_CHOSEN, len(ranked)))
        return [feature for feature, value in zip(top.indices.tolist(), top.values.tolist(), strict=True) if value > 0]

    def features(self, chosen: Sequence[int]) -> list[FeatureReading]:
        """The features, with the tokens at which they are active and those that they promote."""
        if not chosen:
            return []
        model, loaded = self._model, self._loaded
        effects = None
        if writes_to_stream(model, loaded.dictionary, loaded.writes or loaded.place):
            effects = find_logit_effects(model, loaded.dictionary, chosen, min(_TOKENS, model.vocab_size))
        nearest = find_nearest(loaded.dictionary, chosen, _NEAREST)
        shares = None if self._found is None else self._found.shares()
        return [
            self._feature(feature, None if shares is None else float(shares[feature]), row, effects, nearest[row])
            for row, feature in enumerate(chosen)
        ]

    def _feature(
        self,
        feature: int,
        share: float | None,
        row: int,
        effects: LogitEffects | None,
        nearest: Sequence[tuple[int, float]],
    ) -> FeatureReading:
        means = [float(mean[feature]) for mean in self._means]
        strongest = [] if self._found is None else self._found.strongest(feature, _TOKENS)
        return FeatureReading(
            feature=feature,
            means=means,
            difference=means[0] - means[1] if len(means) == 2 else None,
            share=share,
            tokens=[self._active(token, activation) for token, activation in strongest],
            promotes=[] if effects is None else self._effects(effects.promoted[row], effects.promoted_by[row]),
            suppresses=[] if effects is None else self._effects(effects.suppressed[row], effects.suppressed_by[row]),
            nearest=[NearFeature(feature=other, cosine=cosine) for other, cosine in nearest],
            matched=[] if self._found is None else self._found.matched(feature, _MATCHED),
        )

    def tokens(self) -> list[TokenReading]:
        """Every token that was read, with the features that are strongest there."""
        found = self._found
        if found is None:
            return []
        readings: list[TokenReading] = []
        for token, strongest in enumerate(found.strongest_at_tokens(_AT_TOKEN)):
            prompt, position, text = self._token(token)
            active = [ActiveFeature(feature=feature, activation=value) for feature, value in strongest]
            error = float(found.errors[token])
            readings.append(TokenReading(prompt=prompt, position=position, token=text, error=error, strongest=active))
        return readings

    def _active(self, token: int, activation: float) -> ActiveToken:
        prompt, position, text = self._token(token)
        return ActiveToken(prompt=prompt, position=position, token=text, activation=activation)

    def _token(self, number: int) -> tuple[int, int, str]:
        """The prompt, the position and the text of a token that was read."""
        assert self._found is not None
        prompt, position = int(self._found.prompts[number]), int(self._found.positions[number])
        return prompt, position, token_text(self._model.tokenizer, self._prompts[prompt].ids[position])

    def _effects(self, ids: Sequence[int], by: Sequence[float]) -> list[LogitEffect]:
        pairs = zip(ids, by, strict=True)
        return [LogitEffect(token=token_text(self._model.tokenizer, token), effect=effect) for token, effect in pairs]
