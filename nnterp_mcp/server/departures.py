"""Cancels the call of a client that disconnects, in either era of the protocol.

The MCP library's streamable HTTP with sessions lets a call continue after its connection is lost, so that the client
may reconnect. This server does not store answers for that (`read_run` reads runs), and a model must not compute for a
client that is gone while others wait.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LEFT = "nnterp_mcp.left"


class Departures:
    """Sets an event in a request's scope when its client disconnects before the answer is complete."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on one request."""
        left = scope[_LEFT] = anyio.Event()

        async def watch() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                left.set()
            return message

        await self._app(scope, watch, send)


@asynccontextmanager
async def while_there(request: Request | None) -> AsyncGenerator[None]:
    """Cancels its body when the client disconnects.

    Args:
        request: The HTTP request; None on a transport whose end the MCP library reports itself.
    """
    async with anyio.create_task_group() as tasks:
        if request is not None:
            tasks.start_soon(_cancel_on, request.scope[_LEFT], tasks.cancel_scope)
        yield
        tasks.cancel_scope.cancel()


async def _cancel_on(left: anyio.Event, scope: anyio.CancelScope) -> None:
    await left.wait()
    scope.cancel()
