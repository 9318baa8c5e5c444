"""Standard input and output as a transport, whose end is no fault: a client may go away at any time."""

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
    """The client's messages, and where those for it go.

    Args:
        close: Ends what works for the client. Once it reads no more it is called, and the process ends: the thread
            that waits for the client's next line would hold it back as long as the line does not come.
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
    """Whether it says that nobody takes messages any more: a cancel, or a message that could not be handed on."""
    kinds = (anyio.get_cancelled_exc_class(), anyio.BrokenResourceError, anyio.ClosedResourceError)
    return isinstance(error, kinds) or (isinstance(error, BaseExceptionGroup) and error.split(kinds)[1] is None)


def exit_at_once() -> NoReturn:
    """Ends the process at once: a thread that reads standard input cannot be cancelled, and would hold it back."""
    with suppress(OSError):  # nobody may read it any more
        sys.stdout.flush()
    os._exit(0)
