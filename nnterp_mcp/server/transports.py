"""Serving over stdio, streamable HTTP and SSE. One session serves every client of the process."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from typing import Any

import anyio
from mcp.server.lowlevel import Server

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.pool.session import Session
from nnterp_mcp.redaction import hide
from nnterp_mcp.server import logs
from nnterp_mcp.server.app import build, definition
from nnterp_mcp.server.auth import require_safe_bind
from nnterp_mcp.server.pipes import end_on_signal, exit_at_once, lingering, pipes
from nnterp_mcp.server.routes import HTTP_PATH, SSE_PATH, http_app
from nnterp_mcp.server.served import served
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs

logger = logging.getLogger(__name__)

_CONNECTIONS_OF_A_SESSION = 4
"""One stream for notifications and a few concurrent requests; further connections get a 503."""


def serve(settings: Settings) -> None:
    """Serves until the client closes its input (stdio) or a signal arrives; no worker outlives the server.

    Raises:
        Forbidden: The host is not a loopback address, and there is no token or no list of hosts.
        InvalidRequest: The port is taken, or a tool is named that does not exist.
    """
    require_safe_bind(settings)
    served(settings.tools)
    listener = None if settings.transport == "stdio" else _listen(settings)
    hide(settings.take_secrets())
    logs.begin(settings.log_format)
    anyio.run(_serve, settings, listener)
    exit_at_once()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
        # An answer goes out in small pieces, each of which would wait 40 ms for the client's word on the one before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise InvalidRequest(
            f"port {settings.port} of {settings.host} cannot be opened: {os.strerror(error.errno or 0)}",
            "Choose another with --port; 0 lets the system choose.",
        ) from error


async def _serve(settings: Settings, listener: socket.socket | None) -> None:
    async with Session(settings) as session:
        server = build(session)
        gc.freeze()  # these objects live as long as the server: collecting them again and again would delay clients
        await (_serve_stdio(server, session) if listener is None else _serve_http(server, session, listener))


async def _serve_stdio(server: Server[Any], session: Session) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_on_signal, session.close)
        async with pipes(session.close) as ends, lingering(*ends) as (read, write):
            await server.run(read, write, server.create_initialization_options())
        tasks.cancel_scope.cancel()


async def _serve_http(server: Server[Any], session: Session, listener: socket.socket) -> None:
    import uvicorn

    from nnterp_mcp.server.connections import ImpatientProtocol

    for spec in specs().values():  # cached before the first client would wait for it
        definition(spec)
    settings = session.settings
    config = uvicorn.Config(
        http_app(server, settings),
        http=ImpatientProtocol,
        ws="none",
        log_config=None,  # what it logs passes through our handler, which knows what not to say
        proxy_headers=False,  # a header must not choose the address whose requests are counted
        server_header=False,
        limit_concurrency=_CONNECTIONS_OF_A_SESSION * settings.max_sessions,
        timeout_graceful_shutdown=2,
    )
    http = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_announce, http, settings.host, listener.getsockname()[1])
        tasks.start_soon(_close_on_exit, http, session)
        await http.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def _close_on_exit(http: Any, session: Session) -> None:
    """Ends the calls in flight when the server is told to stop, so that their clients get an answer."""
    while not http.should_exit:
        await anyio.sleep(0.1)
    await session.close()


async def _announce(http: Any, host: str, port: int) -> None:
    while not http.started:
        await anyio.sleep(0.01)
    host = f"[{host}]" if ":" in host else host
    print(
        f"nnterp-mcp is listening on http://{host}:{port}{HTTP_PATH} (streamable HTTP) "
        f"and http://{host}:{port}{SSE_PATH} (SSE)",
        file=sys.stderr,
        flush=True,
    )
