"""How long a server's event loop stood still, measured from inside of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from nnterp_mcp.server import transports

_BEAT = 0.005


def install(file: str) -> None:
    """Lets the server of this process write its longest pause, in seconds, to a file, which is removed to begin anew.

    A pause counts as far as the process computed meanwhile: what a busy machine gives to others is none of its own.
    """
    serve: Callable[..., Awaitable[None]] = transports._serve

    async def watched(*arguments: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_beat, Path(file))
            await serve(*arguments)
            tasks.cancel_scope.cancel()

    transports._serve = watched  # pyright: ignore[reportPrivateUsage]


async def _beat(file: Path) -> None:
    longest = 0.0
    while True:
        wall, computed = time.monotonic(), time.process_time()
        await anyio.sleep(_BEAT)
        pause = min(time.monotonic() - wall - _BEAT, time.process_time() - computed)
        if not file.exists():
            longest = 0.0
        if pause > longest or not file.exists():
            longest = pause
            file.write_text(str(pause))


def longest(file: Path) -> float:
    """The longest pause since the last call, which begins anew."""
    time.sleep(0.05)
    found = float(file.read_text() or 0) if file.exists() else 0.0
    file.unlink(missing_ok=True)
    return found
