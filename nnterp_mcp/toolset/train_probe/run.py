"""`train_probe` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.probes import (
    Boundary,
    Fold,
    deal_folds,
    differ_in_mean,
    fewest_texts,
    make_probe,
    make_sparse_probe,
    predict_held_out,
    probe_boundary,
    shuffle_labels,
)
from nnterp_mcp.experiments.statistics.bootstrap import wilson_interval
from nnterp_mcp.request.vectors import ReadTokens, VectorCard
from nnterp_mcp.toolset.train_probe.apply import apply_probe
from nnterp_mcp.toolset.train_probe.params import TrainProbeParams, require_groups
from nnterp_mcp.toolset.train_probe.problem import Problem, describe_groups, read_problem
from nnterp_mcp.toolset.train_probe.result import ProbedLayer, SparseProbe, TrainProbeResult
from nnterp_mcp.worker.dominance import name_dominant
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench, versions

_SPARSE = (1, 2, 4, 8, 16, 32)
"""Features that sparse probes read."""

_SEED = 0
"""Of the folds and the shuffles: equal calls give equal figures."""


def run(bench: Bench, params: TrainProbeParams, job: Job) -> TrainProbeResult:
    """Trains probes at every layer, on the true labels and on shuffled ones."""
    if params.probe is not None:
        return apply_probe(bench, params, params.probe, job)
    if params.dictionary is not None:
        return _probe_features(bench, params, params.dictionary, job)
    problem = read_problem(bench, params, ReadTokens(positions=params.positions), params.layers, job)
    try:
        require_groups(problem.groups, problem.site, params.save_as)
    except ValueError as error:
        raise InvalidRequest(f"{params.run}: {error}.") from None
    trials = _trials(problem, params)
    layers: list[ProbedLayer] = []
    boundaries: list[Boundary] = []
    norms: list[Float[np.ndarray, " row"]] = []
    width = 0
    counts = np.bincount(problem.labels)

    def so_far() -> TrainProbeResult:
        return TrainProbeResult(
            model=bench.handle,
            method=params.method,
            site=problem.site,
            groups=describe_groups(problem),
            texts=len(np.unique(problem.texts)),
            width=width,
            folds=len(trials[0][1]),
            paired=not np.array_equal(problem.together, problem.texts),
            majority=float(counts.max() / counts.sum()),
            length=_by_length(problem, trials[0][1]),
            layers=layers,
            interventions=problem.interventions,
            run=params.run,
            first_left_out=problem.first_left_out,
        )

    for done, layer in enumerate(problem.layers, start=1):
        states = problem.states(layer)
        width = states.shape[1]
        if params.save_as is not None:
            boundaries.append(probe_boundary(states, problem.labels, make_probe(params.method)))
            norms.append(np.linalg.norm(states, axis=1))
        layers.append(_probe(problem, params, layer, states, trials, job))
        job.partial = so_far
        job.progress(done, len(problem.layers), "layers probed")
    result = so_far()
    if params.save_as is None:
        return result
    dominant = name_dominant(
        bench, torch.from_numpy(np.stack(norms, 1)), problem.tokens_of_rows, problem.layers, problem.given
    )
    return _keep(bench, params, result.model_copy(update={"dominant": dominant}), problem.reading, boundaries)


def _probe_features(bench: Bench, params: TrainProbeParams, dictionary: str, job: Job) -> TrainProbeResult:
    """Probes few features of a dictionary, and the states that it reads."""
    layer = params.layers if isinstance(params.layers, int) else None
    loaded = bench.dictionaries.find(dictionary, layer, job.tell)
    place = loaded.place
    if place.site in ("residual_mid", "residual_mid_normalized"):
        raise Unsupported(f"{dictionary} reads the {place}, whose states are not collected for probes.")
    read = params.model_copy(update={"site": place.site})
    layers = "all" if place.layer is None else (place.layer,)
    problem = read_problem(bench, read, ReadTokens(positions=params.positions), layers, job)
    states = problem.states(problem.layers[0])
    encoded = loaded.dictionary.encode(torch.from_numpy(states).to(bench.model.device)).cpu().numpy()
    trials = _trials(problem, params)
    texts = len(np.unique(problem.texts))
    counts: list[int | None] = [count for count in _SPARSE if count <= encoded.shape[1]]
    order = np.argsort(-differ_in_mean(encoded, problem.labels), kind="stable")
    probes: list[SparseProbe] = []
    for count in [*counts, None]:
        rows, probe = (
            (states, make_probe(params.method))
            if count is None
            else (
                encoded,
                make_sparse_probe(params.method, count),
            )
        )
        accuracies = _accuracies(rows, trials, probe, job)
        low, high = wilson_interval(accuracies[0], texts)
        chosen = [] if count is None else order[:count].tolist()
        probes.append(
            SparseProbe(
                count=count, features=chosen, accuracy=accuracies[0], low=low, high=high, shuffled=accuracies[1:]
            )
        )
        job.progress(len(probes), len(counts) + 1, "probes trained")
    sizes = np.bincount(problem.labels)
    return TrainProbeResult(
        model=bench.handle,
        method=params.method,
        site=str(loaded),
        groups=describe_groups(problem),
        texts=texts,
        width=encoded.shape[1],
        folds=len(trials[0][1]),
        paired=not np.array_equal(problem.together, problem.texts),
        majority=float(sizes.max() / sizes.sum()),
        length=_by_length(problem, trials[0][1]),
        layers=[],
        dictionary=dictionary,
        sparse=probes,
        interventions=problem.interventions,
        run=None,
        first_left_out=problem.first_left_out,
    )


def _trials(problem: Problem, params: TrainProbeParams) -> list[tuple[Int[np.ndarray, " row"], list[Fold]]]:
    """The true labels, then shuffled ones, each with folds dealt for them; the same at every layer."""
    true = deal_folds(problem.labels, problem.together, params.folds, _SEED)
    generator = np.random.default_rng(_SEED)
    shuffled = [_shuffled(problem, generator) for _ in range(params.shuffles)]
    dealt = [(labels, deal_folds(labels, problem.together, params.folds, _SEED)) for labels in shuffled]
    return [(problem.labels, true), *dealt]


def _shuffled(problem: Problem, generator: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Permuted labels, with two texts or more in each class that need not share a fold, as the true ones have."""
    while True:
        check_cancelled()
        labels = shuffle_labels(problem.labels, problem.prompts, generator)
        if fewest_texts(labels, problem.together) > 1:
            return labels


def _probe(
    problem: Problem,
    params: TrainProbeParams,
    layer: int | None,
    states: Float[np.ndarray, "row width"],
    trials: Sequence[tuple[Int[np.ndarray, " row"], list[Fold]]],
    job: Job,
) -> ProbedLayer:
    accuracies = _accuracies(states, trials, make_probe(params.method), job)
    low, high = wilson_interval(accuracies[0], len(np.unique(problem.texts)))
    return ProbedLayer(layer=layer, accuracy=accuracies[0], low=low, high=high, shuffled=accuracies[1:])


def _accuracies(
    states: Float[np.ndarray, "row width"],
    trials: Sequence[tuple[Int[np.ndarray, " row"], list[Fold]]],
    probe: Any,
    job: Job,
) -> list[float]:
    """The held-out accuracy under the true labels, and under each shuffle."""
    accuracies: list[float] = []
    for labels, folds in trials:
        job.check()
        predicted = predict_held_out(states, labels, folds, probe)
        accuracies.append(float((predicted == labels).mean()))
    return accuracies


def _by_length(problem: Problem, folds: Sequence[Fold]) -> float:
    """The accuracy with which the length of prompts alone tells the groups apart."""
    lengths = problem.tokens[:, None].astype(np.float64)
    predicted = predict_held_out(lengths, problem.labels, folds, make_probe("logistic"))
    return float((predicted == problem.labels).mean())


def _keep(
    bench: Bench,
    params: TrainProbeParams,
    result: TrainProbeResult,
    reading: ReadTokens,
    boundaries: Sequence[Boundary],
) -> TrainProbeResult:
    """Saves the probes under a name, as directions with thresholds."""
    assert params.save_as is not None
    directions = np.stack([boundary.direction for boundary in boundaries])
    card = VectorCard(
        name=params.save_as,
        model=bench.handle,
        identity=bench.identity,
        method=f"{params.method} probe",
        tool="train_probe",
        layers=[layer.layer for layer in result.layers if layer.layer is not None],
        norms=np.linalg.norm(directions, axis=1).tolist(),
        reading=reading,
        classes=[group.name for group in result.groups],
        thresholds=[boundary.threshold for boundary in boundaries],
        held_out=[layer.accuracy for layer in result.layers],
        request=params.model_dump(mode="json", exclude={"model"}, exclude_defaults=True),
        versions=versions(),
        made=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    replaced = bench.vectors.save(card, directions)
    return result.model_copy(update={"vector": card, "replaced": None if replaced is None else replaced.made})
