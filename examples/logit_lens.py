"""Connects a client to a server of its own and asks where in smollm2-135m the capital of France is recalled.

Run it with `python examples/logit_lens.py` once the package is installed.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client


async def main() -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "nnterp_mcp", "serve"])
    async with Client(stdio_client(server)) as client:
        await ask(client, "load_model", model="smollm2-135m")
        await ask(
            client,
            "logit_lens",
            prompts=["The capital of France is", "The capital of Italy is"],
            targets={"French": "Paris", "Italian": "Rome"},
        )
        await ask(client, "logit_lens", prompts="The capital of France is", layers="-6:", targets={"capital": "Paris"})


async def ask(client: Client, tool: str, **arguments: Any) -> None:
    result: Any = await client.call_tool(tool, arguments)
    print(f"> {tool}\n{result.content[0].text}\n")


if __name__ == "__main__":
    anyio.run(main)
