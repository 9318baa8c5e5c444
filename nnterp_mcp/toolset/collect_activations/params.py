"""Arguments of `collect_activations`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.fields import Layers, Plot, Positions, PromptGroups
from nnterp_mcp.request.operations import Interventions, Site

# An agent pays for every definition: what other tools spell out is named here only.
StateSite = Annotated[Site, WithJsonSchema({"type": "string", "description": "Site of interventions."})]
ProbedLayers = Annotated[Layers, schemas.as_schema(schemas.INDICES, "Layers.")]
ProbedPositions = Annotated[
    Positions,
    schemas.as_schema(schemas.POSITIONS, "As in logit_lens."),
]
Pooling = Annotated[Literal["none", "mean", "last"], Field(description="Of positions.")]
Edits = Annotated[Interventions, schemas.as_schema(schemas.OPERATIONS, "As in generate.")]


class CollectActivationsParams(ModelParams):
    """Which states to keep, of which prompts."""

    prompts: PromptGroups
    site: StateSite = "layers_output"
    layers: ProbedLayers = "all"
    positions: ProbedPositions = ("last",)
    pool: Pooling = "none"
    interventions: Edits = ()
    plot: Plot = False
