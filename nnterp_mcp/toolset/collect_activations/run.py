"""`collect_activations` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import DominantToken
from nnterp_mcp.experiments.statistics.geometry import Components, compare_groups, measure_norms, principal_components
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.runs.arrays import Rows
from nnterp_mcp.toolset.collect_activations.params import CollectActivationsParams
from nnterp_mcp.toolset.collect_activations.result import (
    STATES,
    CollectActivationsResult,
    CollectedLayer,
    CollectedPrompt,
    CollectedRow,
    GroupLength,
    GroupsApart,
)
from nnterp_mcp.worker.dominance import name_dominant
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.state_collection import Collection, prepare

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_COMPONENTS = 3
_COMPARED = 24
"""Groups that are compared pair by pair, at most: the pairs grow with the square of it."""

_FITTED = 1000
"""Rows that principal components are computed from, at most: their cost grows with the square of it."""


def run(bench: Bench, params: CollectActivationsParams, job: Job) -> CollectActivationsResult:
    """Reads the states to disk, then looks at how they lie, layer by layer."""
    collection = prepare(
        bench,
        params.prompts,
        params.site,
        params.layers,
        params.positions,
        params.pool,
        params.interventions,
        job,
    )
    finished: list[int] = []
    job.partial = lambda: _result(collection, params, finished, []) if finished else None
    rows = job.keep_rows(STATES, collection.axes)
    norms = collection.read(rows, finished)
    found = _result(collection, params, finished, [])
    averaged = found.averaged_rows
    summaries = _summaries(collection, averaged, rows, job)
    return found.model_copy(
        update={
            "fitted": len(_fitted(averaged)),
            "dominant": _dominant(collection, params, averaged, norms),
            "summaries": summaries,
        }
    )


def _dominant(
    collection: Collection,
    params: CollectActivationsParams,
    averaged: Sequence[int],
    norms: Sequence[Float[Tensor, "position layer"]],
) -> DominantToken | None:
    first = {name: collection.groups.index(name) for name in params.prompts}
    tokens = [
        (collection.groups[row.prompt], row.prompt - first[collection.groups[row.prompt]], at)
        for row in map(collection.rows.__getitem__, averaged)
        for at in row.positions
    ]
    together = torch.cat([norms[row] for row in averaged])
    return name_dominant(collection.bench, together, tokens, collection.layers, params.prompts)


def _result(
    collection: Collection, params: CollectActivationsParams, finished: Sequence[int], summaries: list[CollectedLayer]
) -> CollectActivationsResult:
    bench = collection.bench
    return CollectActivationsResult(
        model=bench.handle,
        site=params.site,
        layers=collection.layers,
        shape=list(collection.shape),
        pool=params.pool,
        groups=list(params.prompts),
        interventions=list(collection.work.plan.labels),
        prompts=[
            CollectedPrompt(group=group, text=prompt.text, tokens=len(prompt.ids))
            for group, prompt in zip(collection.groups, collection.work.prompts, strict=True)
        ],
        rows=[_row(collection, number) for number in sorted(finished)],
        asked=len(collection.rows),
        bytes=collection.bytes,
        fitted=len(_fitted(range(len(collection.rows)))),
        first_left_out="all" in params.positions and params.pool != "last",
        summaries=summaries,
    )


def _row(collection: Collection, number: int) -> CollectedRow:
    row = collection.rows[number]
    ids, at = collection.work.prompts[row.prompt].ids, row.position
    token = None if at is None else token_text(collection.bench.model.tokenizer, ids[at])
    return CollectedRow(row=number, prompt=row.prompt, position=at, token=token)


def _fitted(averaged: Sequence[int]) -> list[int]:
    """Rows evenly spaced, all of them where they are few."""
    count = min(len(averaged), _FITTED)
    return [averaged[at * len(averaged) // count] for at in range(count)]


def _summaries(collection: Collection, averaged: Sequence[int], rows: Rows, job: Job) -> list[CollectedLayer]:
    """Summarizes the states of each layer, heads concatenated, over the rows that means are taken over."""
    total = len(collection.layers)
    directions: list[Tensor | None] = []
    summaries: list[CollectedLayer] = []
    fitted = _fitted(averaged)
    for place, layer in enumerate(collection.layers):
        states = torch.from_numpy(rows.along(place)).flatten(1)
        found = principal_components(states[fitted], _COMPONENTS)
        directions.append(None if found is None else found.directions.unflatten(1, collection.shape))
        summaries.append(_summary(collection, averaged, layer, states, found))
        job.progress(place + 1, total, "layers summed up")
    _keep_components(collection, directions, job)
    return summaries


def _keep_components(collection: Collection, directions: Sequence[Tensor | None], job: Job) -> None:
    """Keeps the principal components of each layer; those that a layer has not are not numbers (NaN)."""
    most = max((len(found) for found in directions if found is not None), default=0)
    if most == 0:
        return
    kept = torch.full((len(directions), most, *collection.shape), torch.nan)
    for row, found in zip(kept, directions, strict=True):
        if found is not None:
            row[: len(found)] = found
    _, layers, *state = collection.axes.items()
    job.keep("components", kept, dict([layers, ("component", range(1, most + 1)), *state]))


def _summary(
    collection: Collection,
    averaged: Sequence[int],
    layer: int | None,
    states: Float[Tensor, "row width"],
    found: Components | None,
) -> CollectedLayer:
    by_group: dict[str, list[int]] = {name: [] for name in collection.groups}
    for number in averaged:
        by_group[collection.groups[collection.rows[number].prompt]].append(number)
    long = {name: measure_norms(states[numbers]) for name, numbers in by_group.items()}
    return CollectedLayer(
        layer=layer,
        groups=[GroupLength(group=name, norm=found.mean, deviation=found.deviation) for name, found in long.items()],
        pairs=[_apart(collection, states, by_group, *pair) for pair in combinations(by_group, 2)]
        if len(by_group) <= _COMPARED
        else [],
        explained=[] if found is None else found.explained.tolist(),
    )


def _apart(
    collection: Collection, states: Tensor, by_group: dict[str, list[int]], first: str, second: str
) -> GroupsApart:
    one, other = by_group[first], by_group[second]
    found = compare_groups(
        states[one],
        states[other],
        [collection.rows[number].prompt for number in one],
        [collection.rows[number].prompt for number in other],
    )
    return GroupsApart(
        first=first,
        second=second,
        cosine=found.cosine,
        shuffled=found.shuffled,
        gap=found.gap,
        shuffled_gap=found.shuffled_gap,
    )
