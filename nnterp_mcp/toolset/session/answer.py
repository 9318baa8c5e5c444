"""From a result of `session` to its answer, and the answer as text."""

from __future__ import annotations

from collections.abc import Mapping

from nnterp_mcp.formatting import elided, number, plural, seconds, size
from nnterp_mcp.request.dictionaries import DictionaryCard
from nnterp_mcp.request.named_sets import UNGROUPED
from nnterp_mcp.request.vectors import VectorCard
from nnterp_mcp.table import Column, tabulate
from nnterp_mcp.toolset.session.result import LoadedModel, RunLine, SessionAnswer, SessionResult, SetLine

_VECTORS = 12
"""Vectors that an answer shows."""

_SETS = 12
"""Prompt sets, and dictionaries, that an answer shows."""

_EDITS = 4
"""Edits of a model that an answer names."""


def digest(result: SessionResult) -> SessionAnswer:
    """A table of the models, one of the runs, one of the vectors and one of the prompt sets."""
    loaded = f"{plural(len(result.models), 'model')} loaded; {size(result.free_memory)} of host memory available."
    return SessionAnswer(
        finding=f"{_change(result)}{loaded}",
        notes=_notes(result),
        models=tabulate(_MODELS, result.models),
        runs=tabulate(_RUNS, result.runs),
        vectors=tabulate(_CARDS, result.vectors[:_VECTORS]),
        prompt_sets=tabulate(_LINES, result.sets[:_SETS]),
        dictionaries=tabulate(_DICTIONARIES, result.dictionaries[:_SETS]),
    )


def _change(result: SessionResult) -> str:
    if result.deleted is not None:
        return f"The prompt set {result.deleted} is deleted. "
    if result.saved is None:
        return ""
    instead = ", in place of one of that name" if result.replaced else ""
    return f'The prompt set {result.saved} is saved{instead}: give {{"set": "{result.saved}"}} where prompts go. '


def _notes(result: SessionResult) -> list[str]:
    notes = [] if result.ndif is None else [result.ndif]
    notes += [note for model in result.models for note in _edits(model)]
    notes += [
        f"The process of {model.handle} also holds {name} ({size(count)}), to compare with; unloading either frees it."
        for model in result.models
        for name, count in model.held.items()
        if count
    ]
    notes += [
        f"The {what} of {model.handle} are not replayed as graphs: {reason}"
        for model in result.models
        for what, reason in model.uncaptured.items()
    ]
    notes += [f"{handle} is gone: {reason}." for handle, reason in list(result.gone.items())[-5:]]
    if len(result.vectors) > _VECTORS:
        notes.append(f"{plural(len(result.vectors) - _VECTORS, 'older vector')} not shown.")
    if len(result.sets) > _SETS:
        notes.append(f"{plural(len(result.sets) - _SETS, 'older prompt set')} not shown.")
    if len(result.dictionaries) > _SETS:
        notes.append(f"Of {len(result.dictionaries)} dictionaries {_SETS} are shown.")
    return notes


def _edits(model: LoadedModel) -> list[str]:
    if not model.edits:
        return []
    named = "; ".join(model.edits[:_EDITS])
    more = f"; and {len(model.edits) - _EDITS} more" if len(model.edits) > _EDITS else ""
    return [f"Active on {model.handle} in every call: {named}{more}."]


def _memory(count: int | None) -> str | None:
    return None if count is None else size(count)


_MODELS: list[Column[LoadedModel]] = [
    Column("model", lambda model: model.handle),
    Column("source", lambda model: model.source),
    Column("state", lambda model: model.state),
    Column("device", lambda model: model.device),
    Column("dtype", lambda model: model.dtype),
    Column("since", lambda model: f"{seconds(model.age)} ago"),
    Column("host memory", lambda model: _memory(model.host_memory)),
    Column("device memory", lambda model: _memory(model.device_memory)),
]
_RUNS: list[Column[RunLine]] = [
    Column("run_id", lambda run: run.id),
    Column("model", lambda run: run.model),
    Column("state", lambda run: run.state if run.progress is None else f"{run.state}: {run.progress}"),
    Column("begun", lambda run: f"{seconds(run.age)} ago"),
]
_CARDS: list[Column[VectorCard]] = [
    Column("vector", lambda card: card.name),
    Column("model", lambda card: card.model),
    Column("weights", lambda card: card.identity.fingerprint[:6]),
    Column("method", lambda card: card.method),
    Column("layers", lambda card: _layers(card)),
    Column("norm", lambda card: _norms(card)),
]
_LINES: list[Column[SetLine]] = [
    Column("prompt set", lambda line: line.name),
    Column("prompts", lambda line: sum(line.groups.values())),
    Column("groups", lambda line: _groups(line.groups)),
    Column("targets", lambda line: ", ".join(line.categories[:4])),
    Column("saved", lambda line: f"{seconds(line.age)} ago"),
]
_DICTIONARIES: list[Column[DictionaryCard]] = [
    Column("dictionary", lambda card: card.name),
    Column("weights", lambda card: card.identity.fingerprint[:6]),
    Column("reads", lambda card: _reads(card)),
    Column("features", lambda card: max((one.features for one in card.layers), default=0)),
    Column("memory", lambda card: size(sum(one.nbytes for one in card.layers))),
]


def _reads(card: DictionaryCard) -> str:
    if len(card.layers) == 1:
        return str(card.layers[0].place)
    return f"{plural(len(card.layers), 'layer')}, {card.layers[0].reads}"


def _groups(groups: Mapping[str, int]) -> str:
    if list(groups) == [UNGROUPED]:
        return "none"
    named = [f"{elided(name)} ({count})" for name, count in list(groups.items())[:4]]
    return ", ".join(named) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")


def _layers(card: VectorCard) -> str:
    layers = card.layers
    if not layers:
        return "any"
    unbroken = len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if unbroken else ", ".join(map(str, layers))


def _norms(card: VectorCard) -> str:
    least, most = number(min(card.norms)), number(max(card.norms))
    return least if least == most else f"{least} to {most}"
