"""Standard input and output as a transport; a client that closes them is no error."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import anyio
from mcp.server.stdio import stdio_server

logger = logging.getLogger(__name__)


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


def _is_of_the_pipes(error: BaseException) -> bool:
    """True for errors that mean a closed pipe: a cancellation, or a message that could not be sent."""
    kinds = (anyio.get_cancelled_exc_class(), anyio.BrokenResourceError, anyio.ClosedResourceError)
    return isinstance(error, kinds) or (isinstance(error, BaseExceptionGroup) and error.split(kinds)[1] is None)


def exit_at_once() -> NoReturn:
    """Exits at once: a thread that reads standard input cannot be cancelled and would block a normal exit."""
    with suppress(OSError):  # nobody may read it any more
        sys.stdout.flush()
    os._exit(0)
