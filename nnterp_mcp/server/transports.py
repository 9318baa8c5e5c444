"""Serving over stdio, streamable HTTP and SSE. One pool serves every client of the process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

import anyio
from mcp.server.lowlevel import Server

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.server.app import build
from nnterp_mcp.session.pool import Pool
from nnterp_mcp.settings import LOOPBACK, Settings

logger = logging.getLogger(__name__)

HTTP_PATH, SSE_PATH, SSE_MESSAGES = "/mcp", "/sse", "/messages/"


def serve(settings: Settings) -> None:
    """Serves until the client leaves (stdio) or a signal comes (any transport); no worker outlives it.

    Raises:
        Forbidden: The host is not a loopback address.
        InvalidRequest: The port is taken.
    """
    if settings.transport != "stdio" and settings.host not in LOOPBACK:
        raise Forbidden(
            f"the server binds to loopback addresses only, not {settings.host!r}",
            f"Use one of {', '.join(LOOPBACK)}.",
        )
    listener = None if settings.transport == "stdio" else _listen(settings)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for noisy in ("mcp", "httpx", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with suppress(KeyboardInterrupt):
        anyio.run(_serve, settings, listener)
    _exit()


def _exit() -> NoReturn:
    """Ends the process at once: a thread that reads standard input cannot be cancelled, and would hold it back."""
    sys.stdout.flush()
    os._exit(0)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise InvalidRequest(
            f"port {settings.port} of {settings.host} cannot be opened: {os.strerror(error.errno or 0)}",
            "Choose another with --port; 0 lets the system choose.",
        ) from error


async def _serve(settings: Settings, listener: socket.socket | None) -> None:
    async with Pool(settings) as pool:
        server = build(pool)
        await (_serve_stdio(server, pool) if listener is None else _serve_http(server, pool, settings.host, listener))


async def _serve_stdio(server: Server[Any], pool: Pool) -> None:
    from mcp.server.stdio import stdio_server

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_on_signal, pool)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
        tasks.cancel_scope.cancel()


async def _end_on_signal(pool: Pool) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            await pool.close()
            _exit()


async def _serve_http(server: Server[Any], pool: Pool, host: str, listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(http_app(server, host), log_level="warning", timeout_graceful_shutdown=2)
    http = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_announce, http, host, listener.getsockname()[1])
        tasks.start_soon(_close_on_exit, http, pool)
        await http.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


def http_app(server: Server[Any], host: str) -> Any:
    """The ASGI application: streamable HTTP and SSE on one port."""
    from mcp.server.sse import SseServerTransport
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.routing import Mount, Route
    from starlette.types import Receive, Scope, Send

    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=["127.0.0.1:*", "localhost:*", "[::1]:*"],
        allowed_origins=["http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*"],
    )
    app = server.streamable_http_app(streamable_http_path=HTTP_PATH, host=host, transport_security=security)
    sse = SseServerTransport(SSE_MESSAGES, security_settings=security)

    class Sse:
        """An ASGI endpoint; a class, since Starlette takes a plain function for a request handler."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with sse.connect_sse(scope, receive, send) as (read, write):
                await server.run(read, write, server.create_initialization_options())

    app.router.routes.append(Route(SSE_PATH, endpoint=Sse(), methods=["GET"]))
    app.router.routes.append(Mount(SSE_MESSAGES, app=sse.handle_post_message))
    return app


async def _close_on_exit(http: Any, pool: Pool) -> None:
    """Ends the calls in flight as soon as the server is told to, so that their clients hear of it."""
    while not http.should_exit:
        await anyio.sleep(0.1)
    await pool.close()


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
