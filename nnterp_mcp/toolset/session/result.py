"""Result and answer of `session`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import Answer, Result, ResultPart
from nnterp_mcp.request.dictionaries import DictionaryCard
from nnterp_mcp.request.vectors import VectorCard
from nnterp_mcp.table import TableField


class LoadedModel(ResultPart):
    """One model of the session; memory in bytes, times in seconds.

    `held` are the sizes of other models whose weights its process has read to compare with; 0 for one that shares
    those of another. `uncaptured` names what runs launch by launch on an accelerator, where it could be replayed as a
    graph, and why.
    """

    handle: str
    source: str
    state: str
    device: str | None
    dtype: str | None
    age: float
    host_memory: int | None
    device_memory: int | None
    edits: list[str] = Field(default_factory=list[str])
    held: dict[str, int] = Field(default_factory=dict)
    uncaptured: dict[str, str] = Field(default_factory=dict)


class RunLine(ResultPart):
    """One run; its age in seconds, its progress while it is under way."""

    id: str
    tool: str
    model: str
    state: str
    age: float
    progress: str | None = None


class SetLine(ResultPart):
    """A saved prompt set: its groups with how many prompts each has, and the categories of its targets."""

    name: str
    groups: dict[str, int]
    categories: list[str]
    age: float


class SessionResult(Result):
    """Everything that is loaded, what was lost, the latest runs, and the saved vectors and prompt sets, newest first.

    `dictionaries` are those that `load_features` named, of every model.

    `saved`, `replaced` and `deleted` name the prompt set that the call saved, whether that replaced one, and the one
    that it deleted.
    """

    models: list[LoadedModel]
    runs: list[RunLine]
    vectors: list[VectorCard]
    sets: list[SetLine] = Field(default_factory=list[SetLine])
    dictionaries: list[DictionaryCard] = Field(default_factory=list[DictionaryCard])
    gone: dict[str, str]
    free_memory: int
    ndif: str | None = None
    """The models that the NDIF service serves to this server."""
    saved: str | None = None
    replaced: bool = False
    deleted: str | None = None


class SessionAnswer(Answer):
    """The same as an agent sees it."""

    models: TableField
    runs: TableField
    vectors: TableField
    prompt_sets: TableField
    dictionaries: TableField

    def body(self) -> list[str]:
        """The tables; without models, how to load one."""
        return [*([] if self.models.rows else ["Call load_model to load one."]), *super().body()]
