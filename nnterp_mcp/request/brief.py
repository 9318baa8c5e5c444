"""Fields that other tools spell out, named only: an agent pays for every definition."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

from nnterp_mcp.request import schemas
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.sites import Site

StateSite = Annotated[Site, WithJsonSchema({"type": "string", "description": "Site of interventions."})]
ProbedLayers = Annotated[Layers, schemas.as_schema(schemas.INDICES, "Layers.")]
ProbedPositions = Annotated[
    Positions,
    schemas.as_schema(schemas.POSITIONS, "As in logit_lens."),
]
Edits = Annotated[Interventions, schemas.as_schema(schemas.OPERATION_LIST, "As in generate.")]
