"""`train_probe` in the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from jaxtyping import Float, Int

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.probes import (
    Fold,
    deal_folds,
    fewest_texts,
    join_pairs,
    make_probe,
    predict_held_out,
    probe_direction,
    shuffle_labels,
)
from nnterp_mcp.experiments.statistics.bootstrap import wilson_interval
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.vectors import VectorCard
from nnterp_mcp.runs.arrays import HeldRows
from nnterp_mcp.toolset.train_probe.params import TrainProbeParams, require_groups
from nnterp_mcp.toolset.train_probe.result import ProbedGroup, ProbedLayer, TrainProbeResult
from nnterp_mcp.worker.dominance import AveragedToken, name_dominant
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.state_collection import prepare
from nnterp_mcp.worker.workbench import Bench, versions

_SEED = 0
"""Of the folds and the shuffles: equal calls give equal figures."""


@dataclass(frozen=True)
class _Problem:
    """Classes of states to be told apart.

    Attributes:
        along: The states of every row after a layer.
        layers: The layers; None for the embeddings.
        site: Where the states were read.
        groups: The names of the classes.
        labels: The class of each row.
        prompts: The prompt of each row.
        texts: The number of each row's text; equal texts have the same.
        together: The same number for rows that stay in one fold.
        tokens: How many tokens each row's prompt has.
        interventions: The interventions with which the states were read.
        tokens_of_rows: The group, the prompt's index in it and the position of each row.
        given: The prompts by group.
        first_left_out: Each prompt's first token is left out.
    """

    along: Callable[[int | None], Float[np.ndarray, "row ..."]]
    layers: list[int | None]
    site: str
    groups: list[str]
    labels: Int[np.ndarray, " row"]
    prompts: Int[np.ndarray, " row"]
    texts: Int[np.ndarray, " row"]
    together: Int[np.ndarray, " row"]
    tokens: Int[np.ndarray, " row"]
    interventions: list[str]
    tokens_of_rows: list[AveragedToken]
    given: Mapping[str, Sequence[Prompt]]
    first_left_out: bool

    def states(self, layer: int | None) -> Float[np.ndarray, "row width"]:
        """The states after a layer, heads side by side.

        Raises:
            InvalidRequest: They are not finite.
        """
        states = self.along(layer)
        if not np.isfinite(states).all():  # of an older run: what is collected now is finite
            raise InvalidRequest("the states are not finite, so that no probe can be trained on them.")
        return states.reshape(len(states), -1)


def run(bench: Bench, params: TrainProbeParams, job: Job) -> TrainProbeResult:
    """Trains probes at every layer, on the true labels and on shuffled ones."""
    problem = _read(bench, params, job) if params.run is None else _recall(bench, params)
    trials = _trials(problem, params)
    layers: list[ProbedLayer] = []
    directions: list[Float[np.ndarray, " width"]] = []
    norms: list[Float[np.ndarray, " row"]] = []
    width = 0
    counts = np.bincount(problem.labels)

    def so_far() -> TrainProbeResult:
        return TrainProbeResult(
            model=bench.handle,
            method=params.method,
            site=problem.site,
            groups=_groups(problem),
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
            directions.append(probe_direction(states, problem.labels, make_probe(params.method)))
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
    return _keep(bench, params, result.model_copy(update={"dominant": dominant}), np.stack(directions))


def _read(bench: Bench, params: TrainProbeParams, job: Job) -> _Problem:
    """States that are read now."""
    assert params.prompts is not None
    collection = prepare(
        bench,
        params.prompts,
        params.site,
        params.layers,
        params.positions,
        "none",
        (),
        job,
        averaged=True,
    )
    held = HeldRows(collection.axes)
    collection.read(held, [])
    return _problem(
        along=lambda layer: held.along(collection.layers.index(layer)),
        layers=collection.layers,
        site=params.site,
        names=collection.groups,
        texts=[prompt.text for prompt in collection.work.prompts],
        tokens=[len(prompt.ids) for prompt in collection.work.prompts],
        rows=[(row.prompt, row.position) for row in collection.rows],
        interventions=[],
        given=params.prompts,
        first_left_out="all" in params.positions,
    )


def _recall(bench: Bench, params: TrainProbeParams) -> _Problem:
    """States that an earlier run recorded.

    Raises:
        InvalidRequest: There is no such run, it belongs to other weights, or no probe fits its groups.
    """
    assert params.run is not None
    kept = bench.find_states(params.run)
    found = kept.result
    try:
        require_groups(found.groups, found.site, params.save_as)
    except ValueError as error:
        raise InvalidRequest(f"{params.run}: {error}.") from None
    layers = found.layers
    if params.layers != "all":
        layers = list(resolve_layers(params.layers, bench.model.num_layers, bench.handle))
    averaged = found.averaged_rows
    return _problem(
        along=lambda layer: kept.along(layer)[averaged],
        layers=layers,
        site=found.site,
        names=[prompt.group for prompt in found.prompts],
        texts=[prompt.text for prompt in found.prompts],
        tokens=[prompt.tokens for prompt in found.prompts],
        rows=[(found.rows[at].prompt, found.rows[at].position) for at in averaged],
        interventions=found.interventions,
        given=kept.groups,
        first_left_out=found.first_left_out,
    )


def _problem(
    *,
    along: Callable[[int | None], Float[np.ndarray, "row ..."]],
    layers: Sequence[int | None],
    site: str,
    names: Sequence[str],
    texts: Sequence[str],
    tokens: Sequence[int],
    rows: Sequence[tuple[int, int | None]],
    interventions: list[str],
    given: Mapping[str, Sequence[Prompt]],
    first_left_out: bool,
) -> _Problem:
    """Numbers for what is known of each prompt, row by row."""
    groups, prompts = list(dict.fromkeys(names)), np.array([prompt for prompt, _ in rows])
    labels = np.array([groups.index(name) for name in names])
    number_of = {text: at for at, text in enumerate(texts)}
    numbers = np.array([number_of[text] for text in texts])
    return _Problem(
        along=along,
        layers=list(layers),
        site=site,
        groups=groups,
        labels=labels[prompts],
        prompts=prompts,
        texts=numbers[prompts],
        together=join_pairs(labels, numbers)[prompts],
        tokens=np.array(tokens)[prompts],
        interventions=interventions,
        tokens_of_rows=[(names[prompt], prompt - names.index(names[prompt]), at) for prompt, at in rows],
        given=given,
        first_left_out=first_left_out,
    )


def _trials(problem: _Problem, params: TrainProbeParams) -> list[tuple[Int[np.ndarray, " row"], list[Fold]]]:
    """The true labels, then shuffled ones, each with folds dealt for them; the same at every layer."""
    true = deal_folds(problem.labels, problem.together, params.folds, _SEED)
    generator = np.random.default_rng(_SEED)
    shuffled = [_shuffled(problem, generator) for _ in range(params.shuffles)]
    dealt = [(labels, deal_folds(labels, problem.together, params.folds, _SEED)) for labels in shuffled]
    return [(problem.labels, true), *dealt]


def _shuffled(problem: _Problem, generator: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Permuted labels, with two texts or more in each class that need not share a fold, as the true ones have."""
    while True:
        check_cancelled()
        labels = shuffle_labels(problem.labels, problem.prompts, generator)
        if fewest_texts(labels, problem.together) > 1:
            return labels


def _probe(
    problem: _Problem,
    params: TrainProbeParams,
    layer: int | None,
    states: Float[np.ndarray, "row width"],
    trials: Sequence[tuple[Int[np.ndarray, " row"], list[Fold]]],
    job: Job,
) -> ProbedLayer:
    accuracies: list[float] = []
    for labels, folds in trials:
        job.check()
        predicted = predict_held_out(states, labels, folds, make_probe(params.method))
        accuracies.append(float((predicted == labels).mean()))
    low, high = wilson_interval(accuracies[0], len(np.unique(problem.texts)))
    return ProbedLayer(layer=layer, accuracy=accuracies[0], low=low, high=high, shuffled=accuracies[1:])


def _by_length(problem: _Problem, folds: Sequence[Fold]) -> float:
    """The accuracy with which the length of prompts alone tells the groups apart."""
    lengths = problem.tokens[:, None].astype(np.float64)
    predicted = predict_held_out(lengths, problem.labels, folds, make_probe("logistic"))
    return float((predicted == problem.labels).mean())


def _groups(problem: _Problem) -> list[ProbedGroup]:
    found: list[ProbedGroup] = []
    for label, name in enumerate(problem.groups):
        here = problem.labels == label
        _, first = np.unique(problem.prompts[here], return_index=True)
        tokens = float(problem.tokens[here][first].mean())
        found.append(ProbedGroup(name=name, prompts=len(first), rows=int(here.sum()), tokens=tokens))
    return found


def _keep(
    bench: Bench, params: TrainProbeParams, result: TrainProbeResult, directions: Float[np.ndarray, "layer width"]
) -> TrainProbeResult:
    """Keeps the probes' directions under a name."""
    assert params.save_as is not None
    card = VectorCard(
        name=params.save_as,
        model=bench.handle,
        identity=bench.identity,
        method=f"{params.method} probe",
        tool="train_probe",
        layers=[layer.layer for layer in result.layers if layer.layer is not None],
        norms=np.linalg.norm(directions, axis=1).tolist(),
        request=params.model_dump(mode="json", exclude={"model"}, exclude_defaults=True),
        versions=versions(),
        made=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    replaced = bench.vectors.save(card, directions)
    return result.model_copy(update={"vector": card, "replaced": None if replaced is None else replaced.made})
