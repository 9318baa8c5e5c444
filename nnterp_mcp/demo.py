"""`nnterp-mcp demo`: an MCP client starts a server, loads a model, runs a logit lens and prints the answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from tempfile import TemporaryFile
from typing import Any

import anyio
from anyio.streams.text import TextReceiveStream
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from nnterp_mcp.commands.connect import TOKEN_VARIABLE
from nnterp_mcp.server.bridge import http_client
from nnterp_mcp.server.transports import HTTP_PATH, SSE_PATH
from nnterp_mcp.settings import Transport

_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("load_model", {"model": "smollm2-135m"}),
    ("tokenize", {"prompts": "The capital of France is"}),
    (
        "logit_lens",
        {"prompts": "The capital of France is", "targets": {"capital": "Paris", "traps": ["London", "Madrid"]}},
    ),
    ("unload_model", {}),
]


def demonstrate(transport: Transport) -> int:
    """Runs the demo over a transport and returns the exit code: 1 if a call failed."""
    return anyio.run(_demonstrate, transport)


async def _demonstrate(transport: Transport) -> int:
    begun = time.monotonic()
    failed = 0
    async with _connected(transport) as client:
        tools = (await client.list_tools()).tools
        print(f"connected over {transport}: {', '.join(tool.name for tool in tools)}")
        for name, arguments in _CALLS:
            failed += await _show_call(client, name, arguments)
    print(f"\ndone in {time.monotonic() - begun:.1f} s")
    return 1 if failed else 0


async def _show_call(client: Client, name: str, arguments: dict[str, Any]) -> bool:
    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        print(f"  … {message}", file=sys.stderr)

    print(f"\n> {name} {arguments}")
    begun = time.monotonic()
    result: Any = await client.call_tool(name, arguments, progress_callback=on_progress)
    print(result.content[0].text)
    print(f"({time.monotonic() - begun:.2f} s)")
    return bool(result.is_error)


@asynccontextmanager
async def _connected(transport: Transport) -> AsyncGenerator[Client]:
    # The first load may take long on a slow machine, and nothing can be shown before it.
    command = [sys.executable, "-m", "nnterp_mcp", "serve", "--transport", transport, "--reply-within", "3600"]
    if transport == "stdio":
        parameters = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
        with TemporaryFile("w+") as log:
            try:
                async with Client(stdio_client(parameters, errlog=log)) as client:
                    yield client
            except Exception:
                log.seek(0)
                print(log.read(), file=sys.stderr)
                raise
        return
    # In a session of its own the server gets no Ctrl-C, which ends this process, and that the server.
    async with await anyio.open_process(
        [*command, "--port", "0"], stderr=subprocess.PIPE, start_new_session=True
    ) as server:
        try:
            address, token = await _address(server), os.environ.get(TOKEN_VARIABLE)
            async with http_client(token, trust_env=False) as http:
                if transport == "http":
                    source = streamable_http_client(f"{address}{HTTP_PATH}", http_client=http)
                else:
                    source = sse_client(f"{address}{SSE_PATH}", dict(http.headers))
                async with Client(source) as client:
                    yield client
        finally:
            server.terminate()


async def _address(server: Any) -> str:
    said = ""
    async for text in TextReceiveStream(server.stderr):
        said += text
        if found := re.search(r"(http://\S+?)/mcp", said):
            return found.group(1)
    raise ConnectionError(f"the server did not start: {said}")
