"""Fields that tools share and that need no parsing of their own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_STRING,
)

ModelHandle = Annotated[str | None, Field(max_length=LONGEST_STRING, description="Handle, if several.")]
RunId = Annotated[str, Field(max_length=LONGEST_NAME, description="The run_id of an answer.")]
Plot = Annotated[bool, Field(description="Add a picture.")]
TopK = Annotated[int, Field(ge=1, le=20, description="Top tokens shown.")]
