"""`unload_model`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Answer, ModelParams, Result, ToolSpec
from nnterp_mcp.render import lines, size


class UnloadModelParams(ModelParams):
    """Which model to let go."""


class UnloadModelResult(Result):
    """What was let go; memory in bytes."""

    handle: str
    memory: int | None
    remaining: list[str]


class UnloadModelAnswer(Answer):
    """The same as an agent sees it."""

    remaining: Annotated[list[str], Field(description="Handles of the models that are still loaded.")]


def digest(result: UnloadModelResult) -> UnloadModelAnswer:
    """In words."""
    freed = "" if result.memory is None else f" and {size(result.memory)} of memory are free"
    return UnloadModelAnswer(
        finding=f"{result.handle} is unloaded: its process has ended{freed}.", remaining=result.remaining
    )


def render(answer: UnloadModelAnswer) -> str:
    """As text."""
    return lines(answer, "still loaded: " + (", ".join(answer.remaining) or "nothing"))


SPEC = ToolSpec(
    name="unload_model",
    title="Unload a model",
    description="Ends a model's process and gives all of its memory back. Calls that run on it end with an error.",
    params=UnloadModelParams,
    result=UnloadModelResult,
    answer=UnloadModelAnswer,
    digest=digest,
    render=render,
    place="server",
    read_only=False,
    destructive=True,
)
