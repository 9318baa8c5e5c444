"""Fields that tools share, some with a shorter description than the tool that explains them: every one costs tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_NAME, LONGEST_STRING
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.sites import Site
from nnterp_mcp.request.targets import Targets

ModelHandle = Annotated[str | None, Field(max_length=LONGEST_STRING, description="If several are loaded.")]
RunId = Annotated[str, Field(max_length=LONGEST_NAME, description="The run_id that an answer named.")]
Plot = Annotated[bool, Field(description="Adds a picture.")]
TopK = Annotated[int, Field(ge=1, le=20, description="Top tokens shown.")]
StateSite = Annotated[
    Site, WithJsonSchema({"type": "string", "description": "Hook point, such as mlps_output or heads_output."})
]
ProbedLayers = Annotated[Layers, schemas.as_schema(schemas.INDICES, "A layer, a list, a range or 'all'.")]
ProbedPositions = Annotated[
    Positions,
    schemas.as_schema(
        schemas.POSITIONS,
        "Tokens: an index, 'last', a range, {\"text\": \"is\"} or 'all'; means over 'all' skip the first.",
    ),
]
BriefTargets = Annotated[
    Targets,
    schemas.as_schema(
        schemas.TARGET_MAP,
        'Strings to follow by category, each by its first token: {"capital": "Paris", "traps": ["London", "Rome"]}.',
    ),
]
