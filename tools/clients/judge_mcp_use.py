"""mcp-use: MCP tools as LangChain's, whose arguments a pydantic model checks; what is left out is sent as null."""

from __future__ import annotations

from typing import Any

from judge import run, sent_by
from mcp.types import Tool
from mcp_use.agents.adapters.langchain_adapter import LangChainAdapter


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    made = LangChainAdapter()._convert_tool(Tool.model_validate(tool), object())  # pyright: ignore
    return sent_by(made.args_schema, calls)


run(convert)
