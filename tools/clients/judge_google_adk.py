"""google-adk: MCP tools as Gemini's function declarations."""

from __future__ import annotations

from typing import Any

from google.adk.tools._gemini_schema_util import _to_gemini_schema
from judge import lowered, run


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    schema = _to_gemini_schema(tool["inputSchema"])
    return {"schema": lowered(schema.model_dump(mode="json", exclude_none=True))}


run(convert)
