"""openai-agents: strict where a schema can be, as it stands where names are the caller's own."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from agents.mcp import MCPServer
from agents.mcp.util import MCPUtil
from agents.strict_schema import ensure_strict_json_schema
from judge import run
from mcp.types import Tool


class Server(MCPServer):
    """A server that is never connected: its tools are known."""

    name = "nnterp"

    async def connect(self) -> None: ...
    async def cleanup(self) -> None: ...
    async def list_tools(self, *_: Any, **__: Any) -> list[Tool]:
        return []

    async def call_tool(self, *_: Any, **__: Any) -> Any: ...
    async def list_prompts(self) -> Any: ...
    async def get_prompt(self, *_: Any, **__: Any) -> Any: ...


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    ensure_strict_json_schema(copy.deepcopy(tool["inputSchema"]))  # raises where a schema cannot be made strict
    made = MCPUtil.to_function_tool(Tool.model_validate(tool), Server(), convert_schemas_to_strict=True)
    schema = made.params_json_schema
    if made.strict_json_schema:
        schema = {**schema, "required": tool["inputSchema"].get("required", [])}
    return {"schema": schema, "note": "strict" if made.strict_json_schema else "as it stands"}


asyncio.set_event_loop(asyncio.new_event_loop())
run(convert)
