"""autogen: MCP tools as functions whose arguments a pydantic model checks."""

from __future__ import annotations

from typing import Any

from autogen_core.utils import schema_to_pydantic_model
from judge import run, sent_by


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    return sent_by(schema_to_pydantic_model(tool["inputSchema"], f"{tool['name']}_args"), calls)


run(convert)
