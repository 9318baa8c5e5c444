"""Callers that wait for something long and get its progress."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from nnterp_mcp.pool.messages import Progress

OnProgress = Callable[[Progress], Awaitable[None]]


@dataclass(eq=False)
class Followers:
    """The callers that follow a load or a run."""

    _streams: list[MemoryObjectSendStream[Progress]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._streams)

    def send(self, progress: Progress) -> None:
        """Sends progress to every follower."""
        for stream in self._streams:
            stream.send_nowait(progress)

    def close(self) -> None:
        """Ends every `follow`."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    async def follow(self, on_progress: OnProgress) -> None:
        """Passes progress on until `close`."""
        send, receive = anyio.create_memory_object_stream[Progress](math.inf)
        self._streams.append(send)
        with send, receive:
            try:
                async for progress in receive:
                    await on_progress(progress)
            finally:
                if send in self._streams:
                    self._streams.remove(send)
