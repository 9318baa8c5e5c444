"""Arguments of `attention_probs`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Heads, Interventions
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.prompts import Prompts


class AttentionProbsParams(ModelParams):
    """The heads and query positions to read."""

    prompts: Prompts
    layers: Layers = "all"
    heads: Annotated[Heads, schemas.as_schema(schemas.INDICES, "A head of each layer, a list, a range or 'all'.")] = (
        "all"
    )
    query_positions: Annotated[
        Positions | None,
        schemas.as_schema(
            schemas.POSITIONS,
            'Tokens whose reading is shown: an index, \'last\', a range or {"text": "is"}.',
        ),
    ] = None
    top_k: Annotated[int, Field(ge=1, le=20, description="Keys shown for each head and query.")] = 3
    interventions: Interventions = ()
    kinds: Annotated[
        bool | None,
        Field(description="Score heads on repeated random tokens; by default unless query_positions is given."),
    ] = None
    plot: Plot = False
