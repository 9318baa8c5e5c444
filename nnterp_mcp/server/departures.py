"""Clients that hang up in mid-call: whoever works for one learns of it, whatever era of the protocol it speaks.

Of the MCP library's transports, streamable HTTP with sessions lets a call go on whose connection is gone, so that a
client may come back for its answer. This server keeps no answers for that (a run is kept, and `read_run` reads it),
and a model must not compute for nobody while others wait.
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
    """Notes in a request's scope when its client hangs up before the answer is complete."""

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
    """Cancels its body when the client hangs up, and goes on behind it.

    Args:
        request: The HTTP request; None on a transport whose end the MCP library tells by itself.
    """
    async with anyio.create_task_group() as tasks:
        if request is not None:
            tasks.start_soon(_cancel_on, request.scope[_LEFT], tasks.cancel_scope)
        yield
        tasks.cancel_scope.cancel()


async def _cancel_on(left: anyio.Event, scope: anyio.CancelScope) -> None:
    await left.wait()
    scope.cancel()
