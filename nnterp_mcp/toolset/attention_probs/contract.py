"""`attention_probs`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Cell, ModelParams, Table, ToolSpec
from nnterp_mcp.render import lines, quoted, table
from nnterp_mcp.request import schemas
from nnterp_mcp.request.fields import Layers, Plot, Positions, Prompts
from nnterp_mcp.request.operations import Heads, Interventions
from nnterp_mcp.toolset.attention_probs.digest import digest
from nnterp_mcp.toolset.attention_probs.figure import figure
from nnterp_mcp.toolset.attention_probs.result import AttentionProbsAnswer, AttentionProbsResult


class AttentionProbsParams(ModelParams):
    """What to read, and where."""

    prompts: Prompts
    layers: Layers = "all"
    heads: Annotated[Heads, schemas.as_schema(schemas.INDICES, "Of each layer, given alike.")] = "all"
    query_positions: Annotated[
        Positions | None,
        schemas.as_schema(
            schemas.POSITIONS, "Tokens whose reading to show one by one; given like positions in other tools."
        ),
    ] = None
    top_k: Annotated[int, Field(ge=1, le=20, description="Keys shown per head and query.")] = 3
    interventions: Interventions = ()
    kinds: Annotated[
        bool | None,
        Field(description="Score kinds of heads on repeated random tokens; default: unless query_positions is given."),
    ] = None
    plot: Plot = False


def render(answer: AttentionProbsAnswer) -> str:
    """As text; tokens in quotes so that their spaces show."""
    content = answer.table
    rows = [[_quote(column, value) for column, value in zip(content.columns, row, strict=True)] for row in content.rows]
    return lines(answer, table(Table(columns=content.columns, rows=rows)))


def _quote(column: str, value: Cell) -> Cell:
    if column == "token":
        return quoted(str(value))
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return value
    return [[quoted(part) if isinstance(part, str) else part for part in item] for item in value]


SPEC = ToolSpec(
    name="attention_probs",
    title="Attention probabilities",
    description=(
        "Where heads look: entropy (nats), attention to the first, previous and same token, to earlier tokens equal "
        "to the query (duplicate) and to what followed those (induction), strongest pairs; with query_positions what "
        "these tokens read. Heads are also scored on repeated random tokens, with the probability of copying: knock "
        "heads out by interventions to see what they carry. Attention is where information could be read, not what "
        "was done with it; what goes to the first token counts as `first` only."
    ),
    params=AttentionProbsParams,
    result=AttentionProbsResult,
    answer=AttentionProbsAnswer,
    digest=digest,
    render=render,
    figure=figure,
    served=True,
)
