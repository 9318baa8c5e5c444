"""Standard input and output as a transport; a client that closes them is no error."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCRequest, JSONRPCResponse, RequestId

from nnterp_mcp.interruption import EXIT_CODE, announce_interruption

logger = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds that answers may take to arrive once the client has closed its input. Clients end a server that stays on
after 2 s."""


@asynccontextmanager
async def pipes(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[tuple[Any, Any]]:
    """Opens the streams of messages from and to the client.

    Args:
        close: Ends the work for the client. Called once the client has closed its end, before the process exits: the
            thread that reads standard input cannot be cancelled.
    """
    try:
        async with stdio_server() as (read, write):
            try:
                yield read, write
            except BaseException as error:
                if not _is_of_the_pipes(error):
                    raise
                logger.info("the client reads no more")
                with anyio.CancelScope(shield=True):
                    await close()
                exit_at_once()
            await write.aclose()  # or the transport would wait for more
    except* (BrokenPipeError, ConnectionResetError):
        logger.info("the client reads no more")


@asynccontextmanager
async def lingering(read: Any, write: Any) -> AsyncGenerator[tuple[Any, Any]]:
    """Delays the end of the client's input until its requests are answered: the MCP library cancels them at the end.

    Args:
        read: The stream of messages from the client.
        write: The stream of messages to the client.
    """
    unanswered: set[RequestId] = set()
    inward, requests = anyio.create_memory_object_stream[Any](0)
    answers, outward = anyio.create_memory_object_stream[SessionMessage](0)

    async def forward_requests() -> None:
        async with inward:
            async for item in read:
                if isinstance(item, SessionMessage) and isinstance(item.message, JSONRPCRequest):
                    unanswered.add(item.message.id)
                await inward.send(item)
            with anyio.move_on_after(GRACE):
                while unanswered:
                    await anyio.sleep(0.02)

    async def forward_answers() -> None:
        async for item in outward:
            await write.send(item)
            if isinstance(item.message, JSONRPCResponse | JSONRPCError):
                unanswered.discard(item.message.id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forward_requests)
        tasks.start_soon(forward_answers)
        yield requests, answers


def _is_of_the_pipes(error: BaseException) -> bool:
    """True for errors that mean a closed pipe: a cancellation, or a message that could not be sent."""
    kinds = (anyio.get_cancelled_exc_class(), anyio.BrokenResourceError, anyio.ClosedResourceError)
    return isinstance(error, kinds) or (isinstance(error, BaseExceptionGroup) and error.split(kinds)[1] is None)


async def end_on_signal(close: Callable[[], Awaitable[None]]) -> None:
    """Ends the process when a signal asks for it, once what it does for its client is closed."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if number == signal.SIGINT:
                announce_interruption()
            await close()
            exit_at_once(EXIT_CODE if number == signal.SIGINT else 0)


def exit_at_once(code: int = 0) -> NoReturn:
    """Exits at once: a thread that reads standard input cannot be cancelled and would block a normal exit."""
    with suppress(OSError):  # nobody may read it any more
        sys.stdout.flush()
    os._exit(code)
