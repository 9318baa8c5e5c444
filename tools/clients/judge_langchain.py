"""langchain-mcp-adapters: MCP tools as LangChain's, which hand a model OpenAI's form of them."""

from __future__ import annotations

from typing import Any

from judge import run
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_mcp_adapters.tools import convert_mcp_tool_to_langchain_tool
from mcp.types import Tool


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    made = convert_mcp_tool_to_langchain_tool(object(), Tool.model_validate(tool))  # pyright: ignore
    return {"schema": convert_to_openai_tool(made)["function"]["parameters"]}


run(convert)
