"""pydantic-ai: the schema as the transformers for OpenAI and for Google leave it."""

from __future__ import annotations

import copy
from typing import Any

from judge import run
from pydantic_ai.profiles.google import GoogleJsonSchemaTransformer
from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer


def convert(tool: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    OpenAIJsonSchemaTransformer(copy.deepcopy(tool["inputSchema"]), strict=None).walk()
    return {"schema": GoogleJsonSchemaTransformer(copy.deepcopy(tool["inputSchema"]), strict=None).walk()}


run(convert)
