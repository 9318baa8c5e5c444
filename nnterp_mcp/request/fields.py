"""Fields that tools share and that need no parsing of their own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_STRING,
)

ModelHandle = Annotated[
    str | None,
    Field(max_length=LONGEST_STRING, description="Model handle; optional while one is loaded."),
]
RunId = Annotated[str, Field(max_length=LONGEST_NAME, description="The run_id that an answer named.")]
Plot = Annotated[bool, Field(description="Adds a picture of the result.")]
TopK = Annotated[int, Field(ge=1, le=20, description="Top tokens shown for each distribution.")]
