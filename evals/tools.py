"""A real client of a real server on stdio, which counts what it says and what it is told."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

CountTokens = Callable[[str], int]
PATIENCE = 1200
"""Seconds after which the server would answer that a call goes on; an eval waits, so that a slow machine asks no more
often than a fast one."""


@dataclass(frozen=True)
class Call:
    """One call of a tool, in tokens.

    Attributes:
        tool: Which one.
        sent: Its name and arguments, as compact JSON.
        text: The answer as text.
        structured: The answer as structured content, as compact JSON; a client shows a model one of the two.
    """

    tool: str
    sent: int
    text: int
    structured: int


@dataclass
class Tools:
    """The tools of a server, which answer with structured content.

    Attributes:
        calls: What was called since the last `take`.
    """

    client: Client
    count: CountTokens
    calls: list[Call] = field(default_factory=list)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Calls a tool.

        Raises:
            RuntimeError: The answer is an error.
        """
        result: Any = await self.client.call_tool(tool, arguments)
        text = result.content[0].text
        if result.is_error:
            raise RuntimeError(f"{tool} {arguments} failed: {text}")
        sent = self.count(_compact({"name": tool, "arguments": arguments}))
        told = result.structured_content
        self.calls.append(Call(tool, sent, self.count(text), self.count(_compact(told))))
        return told

    def take(self) -> list[Call]:
        """The calls since the last time, which are forgotten."""
        calls, self.calls = self.calls, []
        return calls


def token_counter(folder: Path) -> CountTokens:
    """Counts tokens with the tokenizer of a model's folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer(text)["input_ids"])


@asynccontextmanager
async def connected(count: CountTokens, folders: Sequence[Path] = ()) -> AsyncGenerator[Tools]:
    """Starts a server on stdio, with runs and vectors of its own, which may load models from folders, and connects."""
    with tempfile.TemporaryDirectory(prefix="nnterp-mcp-eval-") as data:
        environment = os.environ | {"NNTERP_MCP_DATA": data, "NNTERP_MCP_REPLY_WITHIN": str(PATIENCE)}
        environment |= {"NNTERP_MCP_FOLDERS": json.dumps([str(folder) for folder in folders])} if folders else {}
        server = StdioServerParameters(command=sys.executable, args=["-m", "nnterp_mcp", "serve"], env=environment)
        async with Client(stdio_client(server)) as client:
            yield Tools(client, count)


def _compact(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
