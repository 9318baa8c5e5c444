"""From a result of `session` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, number, plural, seconds, size
from nnterp_mcp.render import lines, table
from nnterp_mcp.runs.vectors import VectorCard
from nnterp_mcp.toolset.session.result import LoadedModel, RunLine, SessionAnswer, SessionResult

_VECTORS = 12
"""Vectors that an answer shows."""

_EDITS = 4
"""Edits of a model that an answer names."""


def digest(result: SessionResult) -> SessionAnswer:
    """A table of the models and one of the vectors."""
    columns = ["model", "source", "state", "device", "dtype", "since", "host memory", "device memory"]
    rows: list[list[Cell]] = [
        [
            model.handle,
            model.source,
            model.state,
            model.device,
            model.dtype,
            f"{seconds(model.age)} ago",
            None if model.host_memory is None else size(model.host_memory),
            None if model.device_memory is None else size(model.device_memory),
        ]
        for model in result.models
    ]
    count = plural(len(result.models), "model")
    return SessionAnswer(
        finding=f"{count} loaded; {size(result.free_memory)} of host memory available.",
        notes=_notes(result),
        models=Table(columns=columns, rows=rows),
        runs=_runs(result.runs),
        vectors=_vectors(result.vectors[:_VECTORS]),
    )


def _notes(result: SessionResult) -> list[str]:
    notes = [] if result.ndif is None else [result.ndif]
    notes += [note for model in result.models for note in _edits(model)]
    notes += [f"{handle} is gone: {reason}." for handle, reason in list(result.gone.items())[-5:]]
    if len(result.vectors) > _VECTORS:
        notes.append(f"{plural(len(result.vectors) - _VECTORS, 'older vector')} not shown.")
    return notes


def _edits(model: LoadedModel) -> list[str]:
    if not model.edits:
        return []
    named = "; ".join(elided(label, 80) for label in model.edits[:_EDITS])
    more = f"; and {len(model.edits) - _EDITS} more" if len(model.edits) > _EDITS else ""
    return [f"In force on {model.handle} in every call: {named}{more}."]


def _runs(runs: list[RunLine]) -> Table:
    rows: list[list[Cell]] = [
        [
            run.id,
            run.model,
            run.state if run.progress is None else f"{run.state}: {run.progress}",
            f"{seconds(run.age)} ago",
        ]
        for run in runs
    ]
    return Table(columns=["run_id", "model", "state", "begun"], rows=rows)


def _vectors(cards: list[VectorCard]) -> Table:
    rows: list[list[Cell]] = [
        [card.name, card.model, card.identity.fingerprint[:6], card.method, _layers(card), _norms(card)]
        for card in cards
    ]
    return Table(columns=["vector", "model", "weights", "method", "layers", "norm"], rows=rows)


def _layers(card: VectorCard) -> str:
    layers = card.layers
    if not layers:
        return "any"
    unbroken = len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if unbroken else ", ".join(map(str, layers))


def _norms(card: VectorCard) -> str:
    least, most = number(min(card.norms)), number(max(card.norms))
    return least if least == most else f"{least} to {most}"


def render(answer: SessionAnswer) -> str:
    """As text."""
    return lines(
        answer,
        table(answer.models) if answer.models.rows else "Call load_model to load one.",
        table(answer.runs) if answer.runs.rows else "",
        table(answer.vectors) if answer.vectors.rows else "",
    )
