"""Result and answer of `session`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from nnterp_mcp.contract import Answer, Result, TableField
from nnterp_mcp.runs.vectors import VectorCard


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
    edits: list[str] = []


class RunLine(BaseModel):
    """One run; its age in seconds, its progress while it is under way."""

    model_config = ConfigDict(extra="forbid")

    id: str
    tool: str
    model: str
    state: str
    age: float
    progress: str | None = None


class SessionResult(Result):
    """Everything that is loaded, what was lost, the latest runs and the vectors that are kept, the newest first."""

    models: list[LoadedModel]
    runs: list[RunLine]
    vectors: list[VectorCard]
    gone: dict[str, str]
    free_memory: int
    ndif: str | None = None
    """What the NDIF service serves that this server may use."""


class SessionAnswer(Answer):
    """The same as an agent sees it."""

    models: TableField
    runs: TableField
    vectors: TableField
