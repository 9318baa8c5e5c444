"""A fair queue: calls of one model run one after another, and clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest

import anyio

from nnterp_mcp.errors import LimitExceeded

OnPlace = Callable[[int], None]
"""Called with the number of calls ahead of this one."""

GiveWay = Callable[[], Awaitable[None]]
"""Gives a turn up to those who wait, and returns when it is back."""


@dataclass(eq=False)
class _Ticket:
    client: Hashable
    on_place: OnPlace
    place: int = 0
    ready: anyio.Event = field(default_factory=anyio.Event)


class Turns:
    """Gives a model to one call at a time.

    Args:
        limit: How many calls may wait.
        name: The model's handle, for errors.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._current: _Ticket | None = None
        self._waiting: dict[Hashable, deque[_Ticket]] = {}
        """By client; the first client's first ticket is the next."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def take(self, client: Hashable, on_place: OnPlace) -> AsyncGenerator[GiveWay]:
        """Waits for a turn and keeps it for the body. Of two waiting clients, neither gets two turns before the other.

        The body may give its turn up for a while, by calling what it gets: its call goes to the end of the line.

        Args:
            client: The caller.
            on_place: Called with the place in the queue whenever it changes.

        Raises:
            LimitExceeded: Too many calls wait already.
        """
        ticket = _Ticket(client, on_place)
        self._join(ticket)
        try:
            await ticket.ready.wait()
            yield partial(self._give_way, ticket)
        finally:
            self._leave(ticket)

    def _join(self, ticket: _Ticket) -> None:
        if self._current is None:
            self._give(ticket)
            return
        if len(self) >= self._limit:
            raise LimitExceeded(
                f"{len(self)} calls wait for {self._name}, and this server allows no more",
                "Wait for some of them to end, or cancel one with cancel_run; session lists them.",
            )
        self._waiting.setdefault(ticket.client, deque()).append(ticket)
        self._tell()

    async def _give_way(self, ticket: _Ticket) -> None:
        if not self._waiting:
            return
        ticket.ready, ticket.on_place = anyio.Event(), lambda ahead: None
        self._waiting.setdefault(ticket.client, deque()).append(ticket)
        self._current = None
        self._advance()
        self._tell()
        await ticket.ready.wait()

    def _leave(self, ticket: _Ticket) -> None:
        if ticket is self._current:
            self._current = None
            self._advance()
        else:
            queue = self._waiting[ticket.client]
            queue.remove(ticket)
            if not queue:
                del self._waiting[ticket.client]
        self._tell()

    def _advance(self) -> None:
        """The next client's first ticket has its turn, and the client goes to the end of the line."""
        if not self._waiting:
            return
        client, queue = next(iter(self._waiting.items()))
        ticket = queue.popleft()
        del self._waiting[client]
        if queue:
            self._waiting[client] = queue
        self._give(ticket)

    def _give(self, ticket: _Ticket) -> None:
        self._current = ticket
        ticket.ready.set()

    def _tell(self) -> None:
        rounds = chain.from_iterable(zip_longest(*self._waiting.values()))
        for place, ticket in enumerate(filter(None, rounds), start=1):
            if ticket.place != place:
                ticket.place = place
                ticket.on_place(place)
