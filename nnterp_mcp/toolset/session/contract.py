"""`session`: what it takes and what it answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from nnterp_mcp.contract import Answer, Cell, Params, Result, Table, TableField, ToolSpec
from nnterp_mcp.render import lines, plural, seconds, size, table


class SessionParams(Params):
    """Nothing: the session is the server's."""


class LoadedModel(BaseModel):
    """One model of the session; memory in bytes, times in seconds."""

    model_config = ConfigDict(extra="forbid")

    handle: str
    source: str
    state: str
    device: str | None
    dtype: str | None
    age: float
    host_memory: int | None
    device_memory: int | None


class SessionResult(Result):
    """Everything that is loaded, and what was lost."""

    models: list[LoadedModel]
    gone: dict[str, str]
    free_memory: int


class SessionAnswer(Answer):
    """The same as an agent sees it."""

    models: TableField


def digest(result: SessionResult) -> SessionAnswer:
    """A table of the models."""
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
        notes=[f"{handle} is gone: {reason}." for handle, reason in list(result.gone.items())[-5:]],
        models=Table(columns=columns, rows=rows),
    )


def render(answer: SessionAnswer) -> str:
    """As text."""
    return lines(answer, table(answer.models) if answer.models.rows else "Call load_model to load one.")


SPEC = ToolSpec(
    name="session",
    title="What is loaded",
    description="Lists the loaded models: handle, source, device, since when, and the memory that each holds.",
    params=SessionParams,
    result=SessionResult,
    answer=SessionAnswer,
    digest=digest,
    render=render,
    place="server",
)
