"""google-genai: MCP tools as Gemini's function declarations."""

from __future__ import annotations

from typing import Any

from google.genai._mcp_utils import mcp_to_gemini_tool
from judge import lowered, run
from mcp.types import Tool


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    declared = mcp_to_gemini_tool(Tool.model_validate(tool)).function_declarations[0]
    return {"schema": lowered(declared.parameters.model_dump(mode="json", exclude_none=True))}


run(convert)
