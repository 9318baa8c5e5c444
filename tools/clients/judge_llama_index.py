"""llama-index: MCP tools as functions whose arguments a pydantic model checks."""

from __future__ import annotations

from typing import Any

from judge import run, sent_by
from llama_index.tools.mcp import McpToolSpec


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    spec = McpToolSpec(client=None)
    return sent_by(spec.create_model_from_json_schema(tool["inputSchema"], model_name=f"{tool['name']}_Schema"), calls)


run(convert)
