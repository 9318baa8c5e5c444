"""Fields that other tools spell out, named only: an agent pays for every definition."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

from nnterp_mcp.request import schemas
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.sites import Site

StateSite = Annotated[
    Site,
    WithJsonSchema(
        {
            "type": "string",
            "description": "Hook point: layers_output, mlps_output, attentions_output, heads_output or another site.",
        }
    ),
]
ProbedLayers = Annotated[Layers, schemas.as_schema(schemas.INDICES, "Layers: an index, a list, a range or 'all'.")]
ProbedPositions = Annotated[
    Positions,
    schemas.as_schema(
        schemas.POSITIONS, "Tokens of each prompt: an index, 'last', 'all', a range or {\"text\": \"France\"}."
    ),
]
Edits = Annotated[
    Interventions,
    schemas.as_schema(
        schemas.OPERATION_LIST, 'Edits that are active in the pass, such as [{"op": "skip", "layers": 3}].'
    ),
]
