"""`edit_model`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Answer, ModelParams, Result, ToolSpec
from nnterp_mcp.render import elided, lines, plural
from nnterp_mcp.request.operations import Interventions

_SHOWN = 12
"""Edits that an answer lists."""


class EditModelParams(ModelParams):
    """What is to be in force."""

    interventions: Annotated[Interventions, Field(description="As in generate, in place of those before; [] clears.")]


class EditModelResult(Result):
    """What is in force now, in words."""

    model: str
    in_force: list[str]


class EditModelAnswer(Answer):
    """The same as an agent sees it."""

    model: str
    in_force: Annotated[list[str], Field(description="Each edit.")]


def digest(result: EditModelResult) -> EditModelAnswer:
    """In words."""
    count = len(result.in_force)
    if not count:
        return EditModelAnswer(finding=f"{result.model} is as it was loaded.", model=result.model, in_force=[])
    notes = [f"{plural(count - _SHOWN, 'more edit')} not listed."] if count > _SHOWN else []
    return EditModelAnswer(
        finding=f"{plural(count, 'edit')} in force on {result.model}, for every call of every client until cleared.",
        notes=notes,
        model=result.model,
        in_force=[elided(label, 120) for label in result.in_force[:_SHOWN]],
    )


def render(answer: EditModelAnswer) -> str:
    """As text."""
    return lines(answer, *answer.in_force)


SPEC = ToolSpec(
    name="edit_model",
    title="Keep edits in force",
    description=(
        "Puts interventions in force for every later call on a model, named in its answers and recorded in its runs, "
        "until they are cleared or the model is unloaded. generate's baseline stays unedited."
    ),
    params=EditModelParams,
    result=EditModelResult,
    answer=EditModelAnswer,
    digest=digest,
    render=render,
    place="server",
    read_only=False,
)
