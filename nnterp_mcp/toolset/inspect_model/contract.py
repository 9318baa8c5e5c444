"""`inspect_model`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from nnterp_mcp.contract import ModelParams, ToolSpec
from nnterp_mcp.render import lines, table
from nnterp_mcp.toolset.inspect_model.digest import digest
from nnterp_mcp.toolset.inspect_model.result import InspectModelAnswer, InspectModelResult


class InspectModelParams(ModelParams):
    """What to look at."""

    path: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=300)] | None,
        Field(
            description="A module by either name: layers[3].self_attn, model.layers.3.mlp. Left out: the whole model."
        ),
    ] = None
    source: Annotated[
        bool, Field(description="Show the module's forward code; without path, where attention probabilities are used.")
    ] = False
    start: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="Line of the file at which to begin the code.")
    ] = None


def render(answer: InspectModelAnswer) -> str:
    """As text."""
    parts = [table(part) for part in (answer.tree, answer.layers) if part is not None]
    return lines(answer, *parts, answer.source or "")


SPEC = ToolSpec(
    name="inspect_model",
    title="Modules and code of a model",
    description=(
        "The model's modules under their standard names and transformers' own, with classes and shapes (layers alike "
        "in one line; names that begin with a dot go on from the group above); which sites each kind of layer "
        "offers to interventions; a module's forward code; where attention probabilities are used."
    ),
    params=InspectModelParams,
    result=InspectModelResult,
    answer=InspectModelAnswer,
    digest=digest,
    render=render,
    recorded=False,
)
