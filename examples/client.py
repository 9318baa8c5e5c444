"""What the examples share: a client of a server of its own with smollm2-135m, and calls that print what they answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

SHOWN = 600
"""Characters of a call that are printed."""


@asynccontextmanager
async def laboratory() -> AsyncGenerator[Client]:
    """A client whose server has loaded the model and answers when it is done, however long that takes."""
    command = ["-m", "nnterp_mcp", "serve", "--reply-within", "3600"]
    server = StdioServerParameters(command=sys.executable, args=command, env={**os.environ})
    async with Client(stdio_client(server)) as client:
        await ask(client, "load_model", model="smollm2-135m")
        yield client


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Calls a tool, prints the call with its answer as an agent sees it, and returns the same facts as data."""
    result = await answer(client, tool, **arguments)
    call = f"> {tool} {json.dumps(arguments, ensure_ascii=False)}"
    print(call if len(call) <= SHOWN else call[:SHOWN] + "…", result.content[0].text, sep="\n", end="\n\n", flush=True)
    return result.structured_content


async def answer(client: Client, tool: str, **arguments: Any) -> Any:
    """Calls a tool and waits for its answer.

    Raises:
        RuntimeError: The server refused it.
    """
    result: Any = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(result.content[0].text)
    return result
