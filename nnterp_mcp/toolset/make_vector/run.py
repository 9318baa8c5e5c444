"""`make_vector` in the worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.steering_vectors import (
    Directions,
    MeanStates,
    activation,
    average_states,
    given_directions,
    mean_difference,
    principal_component,
    random_direction,
    token_difference,
)
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.dictionaries import parse_row
from nnterp_mcp.request.operations import TokenDifference
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.vectors import ReadTokens
from nnterp_mcp.toolset.make_vector.aligned import search_alignment
from nnterp_mcp.toolset.make_vector.params import MakeVectorParams, VectorMethod
from nnterp_mcp.toolset.make_vector.recalled import AveragedSets, recall_states
from nnterp_mcp.toolset.make_vector.result import DirectionFacts, MakeVectorResult
from nnterp_mcp.toolset.make_vector.saved import save_vector
from nnterp_mcp.worker.dominance import dominant_in_means
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.lenses import find_lens

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: MakeVectorParams, job: Job) -> MakeVectorResult:
    """Makes the vector and keeps it, or deletes it."""
    if params.method == "delete":
        card = bench.vectors.delete(params.name, bench.identity, bench.handle)
        return MakeVectorResult(model=bench.handle, card=card, deleted=True)
    if params.method == "alignment_search":
        return search_alignment(bench, params, job)
    sets = _states(bench, params, job) if params.method in _FROM_STATES else AveragedSets({}, {}, None)
    states = list(sets.states.values())
    made = _FROM_STATES[params.method](*states) if states else _OTHERWISE[params.method](bench, params)
    if params.norm is not None:
        made = made.scaled(params.norm)
    classes = list(sets.states) if len(sets.states) > 1 else []
    card, replaced = save_vector(bench, params, made, sets.reading, classes=classes)
    if made.layers:
        unit = made.vectors / made.norms[:, None].clamp_min(torch.finfo(made.norms.dtype).tiny)
        job.keep("cosines", unit @ unit.T, {"layer": made.layers, "other_layer": made.layers})
    return MakeVectorResult(
        model=bench.handle,
        card=card,
        replaced=None if replaced is None else replaced.made,
        prompts=[len(of_set.means) for of_set in states],
        interventions=list(sets.interventions),
        first_left_out=sets.first_left_out,
        dominant=dominant_in_means(bench, sets.states, sets.prompts) if states else None,
        directions=_describe(made),
    )


def _describe(made: Directions) -> list[DirectionFacts]:
    apart = made.separation
    columns: dict[str, Tensor | None] = {
        "norm": made.norms,
        "stream": made.stream,
        "positive": None if apart is None else apart.positive,
        "negative": None if apart is None else apart.negative,
        "effect": None if apart is None else apart.effect,
        "held_out": None if apart is None else apart.held_out,
        "explained": made.explained,
    }
    return [
        DirectionFacts(
            layer=made.layers[row] if made.layers else None,
            **{name: _finite(values, row) for name, values in columns.items()},  # pyright: ignore[reportArgumentType]
        )
        for row in range(len(made.vectors))
    ]


def _finite(values: Tensor | None, row: int) -> float | None:
    return float(values[row]) if values is not None and bool(values[row].isfinite()) else None


def _states(bench: Bench, params: MakeVectorParams, job: Job) -> AveragedSets:
    """The states of the positive and of the negative prompts."""
    if params.run is not None:
        return recall_states(bench, params)
    model = bench.model
    total = len(params.positive) + len(params.negative)
    bench.admit(total)
    layers = resolve_layers(params.layers, model.num_layers, bench.handle)
    given = {"positive": params.positive, "negative": params.negative}
    prompts = {side: of_side for side, of_side in given.items() if of_side}
    found: dict[str, MeanStates] = {}
    labels: Sequence[str] = ()
    for side, of_side in prompts.items():
        before = sum(len(states.means) for states in found.values())
        encoded = bench.encode(of_side)
        plan = bench.plan(params.interventions, encoded)
        work = Workload(
            encoded,
            plan,
            batch_tokens=bench.batch_tokens,
            progress=lambda done, _, unit, before=before: job.progress(before + done, total, unit),
        )
        found[side], labels = average_states(model, work, layers, params.positions), plan.labels
    return AveragedSets(found, prompts, ReadTokens(positions=params.positions, pool="mean"), labels)


def _between_tokens(bench: Bench, params: MakeVectorParams) -> Directions:
    texts = [str(prompts[0]) if prompts else None for prompts in (params.positive, params.negative)]
    matrix = params.method.removesuffix("_difference") + "s"
    asked = TokenDifference.model_validate({"positive": texts[0], "negative": texts[1], "of": matrix})
    made = token_difference(bench.model, asked)
    found = find_lens(bench, params.lens) if params.lens is not None else None
    return made if found is None else _through(bench, found[0], made)


def _through(bench: Bench, lens: LensTranslation, made: Directions) -> Directions:
    """The direction at each layer that the lens translates to this one."""
    last = bench.model.num_layers - 1
    lens.require(bench.model, lens.layers)
    layers = sorted({*lens.layers, last})
    return Directions(layers, torch.cat([lens.pull_back(made.vectors, layer) for layer in layers]))


def _from_row(bench: Bench, params: MakeVectorParams) -> Directions:
    name, layer, feature = parse_row(str(params.positive[0]))
    loaded = bench.dictionaries.find(name, layer)
    loaded.require([feature])
    of_decoder = params.method == "decoder_row"
    rows = loaded.dictionary.decoder if of_decoder else loaded.dictionary.encoder
    return given_directions(rows[feature].cpu(), bench.model.hidden_size, [], str(params.positive[0]))


def _from_file(bench: Bench, params: MakeVectorParams) -> Directions:
    assert params.file is not None
    path = allowed_file(params.file, bench.settings.folders)
    layers = resolve_layers(params.layers, bench.model.num_layers, bench.handle)
    try:
        numbers = _read_numbers(path)
    except Exception as error:
        raise InvalidRequest(
            f"{path.name} cannot be read as numbers ({error}).",
            "Give a JSON list of numbers, a list of such lists, or a safetensors file with one tensor.",
        ) from error
    return given_directions(numbers, bench.model.hidden_size, layers, path.name)


def _read_numbers(path: Path) -> Tensor:
    if path.suffix != ".safetensors":
        return torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.float32)
    from safetensors.torch import load_file

    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors: {', '.join(sorted(tensors)[:5])}")
    return next(iter(tensors.values())).float()


def _random(bench: Bench, params: MakeVectorParams) -> Directions:
    assert params.norm is not None
    return random_direction(bench.model.hidden_size, params.norm, params.seed)


_FROM_STATES: dict[VectorMethod, Callable[..., Directions]] = {
    "mean_difference": mean_difference,
    "principal_component": principal_component,
    "activation": activation,
}
_OTHERWISE: dict[VectorMethod, Callable[[Bench, MakeVectorParams], Directions]] = {
    "embedding_difference": _between_tokens,
    "unembedding_difference": _between_tokens,
    "decoder_row": _from_row,
    "encoder_row": _from_row,
    "random": _random,
    "file": _from_file,
}
