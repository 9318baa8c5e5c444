"""`steer` in the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnterp_mcp.contract import DominantToken
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.planning.vectors import resolve_vector
from nnterp_mcp.engine.readouts.targets import follow_targets
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.experiments.steering import Dose, Sweep, sweep
from nnterp_mcp.experiments.steering_vectors import average_states, mean_difference
from nnterp_mcp.experiments.text_scores import perplexity, score_continuations
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.operations import label_of
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.steer.params import PromptContrast, SteerParams
from nnterp_mcp.toolset.steer.result import SteeredRun, SteerResult
from nnterp_mcp.worker.dominance import dominant_in_means
from nnterp_mcp.worker.feature_controls import CONTROLS, matched_rows
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_MOST_RUNS = 20_000


def run(bench: Bench, params: SteerParams, job: Job) -> SteerResult:
    """Runs the sweep and puts words to its tokens."""
    model = bench.model
    prompts = bench.encode(params.prompts, params.max_new_tokens)
    directions, dominant = _directions(bench, params)
    controls = CONTROLS if params.control else 0
    _require_few(params, len(directions), 2 * controls)
    matched = None
    if controls and isinstance(params.vector, str):
        matched = matched_rows(bench, params.vector, prompts, params.positions)
    targets = follow_targets(params.targets, model)

    def result(found: Sweep, perplexities: Mapping[int, float] = MappingProxyType({})) -> SteerResult:
        return SteerResult(
            model=bench.handle,
            vector=_label(params),
            norms={layer: float(direction.float().norm()) for layer, direction in directions.items()},
            prompts=[prompt.text for prompt in prompts],
            controls=controls,
            matched=None if matched is None else list(matched),
            categories=targets.words,
            shared=targets.shared,
            in_force=list(found.labels),
            dominant=dominant,
            runs=_runs(found, directions, perplexities, model.tokenizer),
        )

    def offer(so_far: Callable[[], Sweep]) -> None:
        def partial() -> SteerResult | None:
            found = so_far()
            return result(found) if any(dose.layer is not None for dose in found.doses) else None

        job.partial = partial

    found = sweep(
        model,
        bench.workload(prompts, params.interventions, job),
        directions,
        params.factors,
        positions=params.positions,
        controls=controls,
        given=list((matched or {}).values()),
        top_k=params.top_k,
        targets=targets.ids,
        max_new_tokens=params.max_new_tokens,
        offer=offer,
    )
    texts = {row: ids for row, ids in found.texts.items() if ids}
    numbers = {prompt.index: prompt for prompt in prompts}
    continued = Workload([numbers[found.doses[row].prompt] for row in texts], batch_tokens=bench.batch_tokens)
    scores = score_continuations(model, continued, list(texts.values())) if texts else []
    return result(found, dict(zip(texts, map(perplexity, scores), strict=True)))


def _require_few(params: SteerParams, layers: int, controls: int) -> None:
    factors = sum(factor != 0 for factor in params.factors)
    total = len(params.prompts) * (1 + layers * factors * (1 + controls))
    if total > _MOST_RUNS:
        raise LimitExceeded(
            f"{total} runs (prompts × layers × factors × directions), and at most {_MOST_RUNS} are made in a call.",
            "Give fewer layers, factors or prompts.",
        )


def _label(params: SteerParams) -> str:
    vector = params.vector
    if isinstance(vector, PromptContrast):
        return f"the mean state of {len(vector.positive)} prompts − that of {len(vector.negative)}"
    return label_of(vector)


def _directions(bench: Bench, params: SteerParams) -> tuple[dict[int, Tensor], DominantToken | None]:
    """The vector's direction at each layer of the sweep, and the token that dominates the means that it is made of."""
    model = bench.model
    layers = resolve_layers(params.layers, model.num_layers, bench.handle)
    places = [Place("layers_output", layer) for layer in layers]
    for place in places:
        require_place(model, place)
    dominant = None
    if isinstance(params.vector, PromptContrast):
        prompts = {"positive": params.vector.positive, "negative": params.vector.negative}
        sides = {
            side: average_states(model, Workload(bench.encode(given), batch_tokens=bench.batch_tokens), layers)
            for side, given in prompts.items()
        }
        dominant = dominant_in_means(bench, sides, prompts)
        made = mean_difference(sides["positive"], sides["negative"]).vectors.to(model.device)
        found = dict(zip(layers, made, strict=True))
    else:
        found = {
            layer: resolve_vector(model, params.vector, place, bench.find_vector)
            for layer, place in zip(layers, places, strict=True)
        }
    if not all(bool(direction.any()) for direction in found.values()):
        raise InvalidRequest(f"{_label(params)} is zero, so it has no direction.")
    return found, dominant


def _runs(
    found: Sweep, directions: Mapping[int, Tensor], perplexities: Mapping[int, float], tokenizer: Any
) -> list[SteeredRun]:
    order = sorted(directions)
    prompts = list(dict.fromkeys(dose.prompt for dose in found.doses))
    lengths = {
        (prompt, layer): length
        for prompt, row in zip(prompts, found.stream.tolist(), strict=True)
        for layer, length in zip(order, row, strict=True)
    }
    norms = {layer: float(direction.float().norm()) for layer, direction in directions.items()}
    return [
        SteeredRun(
            prompt=dose.prompt,
            layer=dose.layer,
            factor=dose.factor,
            control=dose.control,
            push=_push(dose, norms, lengths),
            kl=kl,
            top=[(token_text(tokenizer, token), p) for token, p in zip(ids, probs, strict=True)],
            targets=list(zip(target_probs, ranks, strict=True)),
            text=_text(found.texts.get(row), tokenizer),
            perplexity=perplexities.get(row),
        )
        for row, (dose, kl, ids, probs, target_probs, ranks) in enumerate(
            zip(
                found.doses,
                found.kl.tolist(),
                found.readout.top_ids.tolist(),
                found.readout.top_probs.tolist(),
                found.readout.target_probs.tolist(),
                found.readout.target_ranks.tolist(),
                strict=True,
            )
        )
    ]


def _push(dose: Dose, norms: Mapping[int, float], lengths: Mapping[tuple[int, int], float]) -> float | None:
    if dose.layer is None:
        return None
    length = lengths[dose.prompt, dose.layer]
    return abs(dose.factor) * norms[dose.layer] / length if length else None


def _text(ids: Sequence[int] | None, tokenizer: Any) -> str | None:
    return None if ids is None else str(tokenizer.decode(ids, skip_special_tokens=True))
