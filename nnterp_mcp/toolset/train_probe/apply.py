"""Applies a saved probe or vector to prompts, without fitting anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from nnterp_mcp.contract import Measured
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.probes import project_states
from nnterp_mcp.experiments.statistics.bootstrap import wilson_interval
from nnterp_mcp.experiments.statistics.ranking import area_interval, area_under_curve
from nnterp_mcp.formatting import ranges
from nnterp_mcp.request.operations import describe_positions
from nnterp_mcp.request.positions import LayerSpec
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.vectors import ReadTokens, VectorCard
from nnterp_mcp.toolset.train_probe.params import TrainProbeParams
from nnterp_mcp.toolset.train_probe.problem import Problem, describe_groups, read_problem
from nnterp_mcp.toolset.train_probe.result import (
    AppliedLayer,
    AppliedProbe,
    GroupPair,
    ProjectedGroup,
    ScoredRow,
    TrainProbeResult,
)
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

SITE = "layers_output"
"""Where saved directions lie."""

_COMPARED = 24
"""Groups that are compared pair by pair, at most: the pairs grow with the square of it."""


def apply_probe(bench: Bench, params: TrainProbeParams, name: str, job: Job) -> TrainProbeResult:
    """Projects the states of prompts on the saved directions, layer by layer.

    Raises:
        InvalidRequest: There is no such probe, it belongs to other weights, or it was made at another site, at other
            positions or at other layers.
    """
    stored = bench.vectors.load(name, bench.identity, bench.handle)
    card = stored.card
    problem = _read(bench, params, card, job)
    scores = np.full((len(problem.labels), len(problem.layers)), np.nan, dtype=np.float32)
    layers: list[AppliedLayer] = []
    for place, layer in enumerate(problem.layers):
        row = card.layers.index(layer) if card.layers and layer is not None else 0
        scores[:, place] = along = project_states(problem.states(layer), stored.directions[row])
        layers.append(_measure(problem, card, layer, along, card.thresholds[row] if card.thresholds else None))
        job.progress(place + 1, len(problem.layers), "layers read")
    job.keep("scores", torch.from_numpy(scores), {"row": range(len(scores)), "layer": list(_numbers(problem))})
    counts = np.bincount(problem.labels)
    return TrainProbeResult(
        model=bench.handle,
        method=card.method,
        site=problem.site,
        groups=describe_groups(problem),
        texts=len(np.unique(problem.texts)),
        width=stored.directions.shape[1],
        folds=0,
        majority=float(counts.max() / counts.sum()),
        length=_by_length(problem),
        layers=[],
        interventions=problem.interventions,
        run=params.run,
        first_left_out=problem.first_left_out,
        applied=AppliedProbe(card=card, reading=problem.reading, fitted_texts=_fitted_texts(problem, card)),
        directions=layers,
        rows=_rows(problem),
    )


def _read(bench: Bench, params: TrainProbeParams, card: VectorCard, job: Job) -> Problem:
    """The states at the site, the positions and the layers of the saved directions."""
    if params.site != SITE:
        raise InvalidRequest(f"{card.name} is a direction at {SITE}, not at {params.site}.", "Leave out site.")
    reading = ReadTokens(positions=params.positions) if card.reading is None else card.reading
    if params.positions not in (("last",), reading.positions):
        fitted = describe_positions("position", reading.positions)
        raise InvalidRequest(f"{card.name} was fitted at {fitted}.", "Leave out positions.")
    asked = _layers(bench, card, params.layers)
    recalled = params.run is not None and params.layers == "all"
    problem = read_problem(bench, params, reading, "all" if recalled else asked, job)
    if problem.site != SITE:
        raise InvalidRequest(f"{card.name} is a direction at {SITE}, and {params.run} kept states at {problem.site}.")
    common = [at for at in problem.layers if at in card.layers or not card.layers]
    if not common:
        raise InvalidRequest(f"{params.run} kept no states of the layers of {card.name}: {ranges(card.layers)}.")
    return replace(problem, layers=common)


def _numbers(problem: Problem) -> Iterator[int]:
    return (layer for layer in problem.layers if layer is not None)


def _layers(bench: Bench, card: VectorCard, asked: LayerSpec) -> LayerSpec:
    """The layers to read: all that the probe has, or the asked ones of them."""
    if not card.layers:
        return asked
    if asked == "all":
        return tuple(card.layers)
    chosen = resolve_layers(asked, bench.model.num_layers, bench.handle)
    missing = [layer for layer in chosen if layer not in card.layers]
    if missing:
        raise InvalidRequest(
            f"{card.name} has no direction at layer {missing[0]}: it has layers {ranges(card.layers)}."
        )
    return tuple(chosen)


def _measure(
    problem: Problem,
    card: VectorCard,
    layer: int | None,
    along: Float[np.ndarray, " row"],
    threshold: float | None,
) -> AppliedLayer:
    groups = [along[problem.labels == label] for label in range(len(problem.groups))]
    order = sorted(range(len(groups)), key=lambda label: problem.groups[label] not in card.classes[:1])
    texts = [len(np.unique(problem.texts[problem.labels == label])) for label in range(len(problem.groups))]
    pairs: list[GroupPair] = []
    for first, second in combinations(order[:_COMPARED], 2):
        area = area_under_curve(groups[first], groups[second])
        low, high = area_interval(area, texts[first], texts[second])
        pairs.append(
            GroupPair(first=problem.groups[first], second=problem.groups[second], auc=area, low=low, high=high)
        )
    return AppliedLayer(
        layer=layer,
        accuracy=None if threshold is None else _accuracy(problem, card, along, threshold),
        threshold=threshold,
        groups=[
            ProjectedGroup(
                group=name,
                mean=float(rows.mean()),
                deviation=float(rows.std()),
                assigned=None if threshold is None else float((rows > threshold).mean()),
            )
            for name, rows in zip(problem.groups, groups, strict=True)
        ],
        pairs=pairs,
    )


def _accuracy(
    problem: Problem, card: VectorCard, along: Float[np.ndarray, " row"], threshold: float
) -> Measured | None:
    """The share of rows on the side of their own class; None where a group is no class of the probe."""
    if not set(problem.groups) <= set(card.classes):
        return None
    first: Int[np.ndarray, " group"] = np.array([name == card.classes[0] for name in problem.groups])
    share = float(((along > threshold) == first[problem.labels]).mean())
    low, high = wilson_interval(share, len(np.unique(problem.texts)))
    return Measured(mean=share, low=low, high=high)


def _by_length(problem: Problem) -> float:
    """The area under the ROC curve of the token count between the first two groups; 0.5 for one group."""
    if len(problem.groups) < 2:
        return 0.5
    tokens = problem.tokens.astype(np.float64)
    return area_under_curve(tokens[problem.labels == 0], tokens[problem.labels == 1])


def _rows(problem: Problem) -> list[ScoredRow]:
    return [
        ScoredRow(group=group, prompt=prompt, position=at, text=problem.prompt_texts[number])
        for number, (group, prompt, at) in zip(problem.prompts.tolist(), problem.tokens_of_rows, strict=True)
    ]


def _fitted_texts(problem: Problem, card: VectorCard) -> int:
    """How many of the distinct prompts the probe was fitted on."""
    fitted = list(_prompts_of(card.request.get("prompts") or card.request))
    given = [as_data(prompt) for of_group in problem.given.values() for prompt in of_group]
    return len({str(prompt) for prompt in given} & {str(prompt) for prompt in fitted})


def _prompts_of(request: dict[str, Any]) -> Iterator[Any]:
    for prompts in request.values():
        if isinstance(prompts, list):
            yield from prompts


def as_data(prompt: Any) -> Any:
    """A prompt as a recorded request has it."""
    if isinstance(prompt, str):
        return prompt
    messages: Sequence[Any] = prompt
    return [message.model_dump(mode="json") for message in messages]
