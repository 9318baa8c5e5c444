"""`nnterp-mcp connect`: a stdio server that is a bridge to one that listens on HTTP."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.settings import LOOPBACK

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]
    from collections.abc import AsyncIterator

    from mcp_types import JSONRPCMessage

TOKEN_VARIABLE = "NNTERP_MCP_TOKEN"


def add_connect(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    connect = commands.add_parser("connect", help="serve MCP on stdio from a server that listens on HTTP")
    connect.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8765/mcp")
    connect.add_argument(
        "--token-env", metavar="VAR", help=f"variable of the environment that holds its token ({TOKEN_VARIABLE})"
    )
    connect.set_defaults(run=_connect)


def endpoint(url: str) -> str:
    """Completes a server's URL: its root stands for the usual path of streamable HTTP.

    Raises:
        InvalidRequest: It is no HTTP URL, or it has a password, which belongs in the environment.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{url!r} is not an http:// or https:// URL.", "For instance: http://127.0.0.1:8765/mcp")
    if parts.username or parts.password:
        raise InvalidRequest(
            "the URL holds a password, which other users of this machine could read.",
            f"Put the server's token into the environment, as {TOKEN_VARIABLE}.",
        )
    if parts.path == "/sse":
        raise InvalidRequest(f"{url} is the server's SSE endpoint.", "Give that of streamable HTTP: it ends in /mcp.")
    return parts._replace(path="/mcp").geturl() if parts.path in ("", "/") else url


def _connect(options: Namespace) -> None:
    import anyio

    from nnterp_mcp.redaction import hide
    from nnterp_mcp.server import logs
    from nnterp_mcp.server.pipes import exit_at_once

    address, token = endpoint(options.url), _token(options.token_env)
    hide([] if token is None else [token])
    logs.begin("text")
    anyio.run(_carry, address, token)
    exit_at_once()


def _token(variable: str | None) -> str | None:
    token = os.environ.pop(variable or TOKEN_VARIABLE, "").strip()
    if variable and not token:
        raise InvalidRequest(f"the variable {variable} of the environment is not set.", "Put the server's token there.")
    return token or None


async def _carry(address: str, token: str | None) -> None:
    import anyio.lowlevel
    from mcp.shared.message import SessionMessage

    from nnterp_mcp.server.bridge import Bridge, http_client
    from nnterp_mcp.server.pipes import GRACE, end_on_signal, pipes

    # Through a proxy, loopback would be the proxy's machine.
    beyond = urlsplit(address).hostname not in LOOPBACK
    nothing_to_close = anyio.lowlevel.checkpoint
    async with (
        anyio.create_task_group() as tasks,
        http_client(token, trust_env=beyond) as http,
        pipes(nothing_to_close) as (read, write),
    ):

        async def send(message: JSONRPCMessage) -> None:
            await write.send(SessionMessage(message))

        async def messages() -> AsyncIterator[JSONRPCMessage]:
            async for item in read:
                if isinstance(item, Exception):
                    print(f"ignored a line that is no message: {item}", file=sys.stderr)
                else:
                    yield item.message

        bridge = Bridge(address, http, send)
        tasks.start_soon(end_on_signal, nothing_to_close)
        async with anyio.create_task_group() as greeting:
            greeting.start_soon(bridge.greet)
            await bridge.carry(messages())
            greeting.cancel_scope.deadline = anyio.current_time() + GRACE
        tasks.cancel_scope.cancel()
