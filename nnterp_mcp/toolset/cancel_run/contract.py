"""`cancel_run`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Answer, Params, Result, ToolSpec
from nnterp_mcp.render import lines
from nnterp_mcp.request.fields import RunId


class CancelRunParams(Params):
    """Which run to end."""

    run_id: RunId


class CancelRunResult(Result):
    """The run after that."""

    run_id: str
    state: str
    partial: bool
    was_running: bool


class CancelRunAnswer(Answer):
    """The same as an agent sees it."""

    state: Annotated[str, Field(description="Of the run.")]


def digest(result: CancelRunResult) -> CancelRunAnswer:
    """In words."""
    done = f"{result.run_id} is {result.state}"
    kept = "What it had finished is kept: read_run shows it." if result.partial else ""
    return CancelRunAnswer(
        finding=f"{done}." if result.was_running else f"{done} already; there was nothing to cancel.",
        notes=[kept] if kept else [],
        run_id=result.run_id,
        state=result.state,
    )


SPEC = ToolSpec(
    name="cancel_run",
    title="End a run",
    description=(
        "Ends a run under way before its next batch, and answers once the model is free. What it had is kept, marked "
        "partial."
    ),
    params=CancelRunParams,
    result=CancelRunResult,
    answer=CancelRunAnswer,
    digest=digest,
    render=lines,
    place="server",
    read_only=False,
)
