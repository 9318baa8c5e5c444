"""A fair queue: calls of one model run one after another, and clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest

import anyio

from nnterp_mcp.errors import LimitExceeded

OnPlace = Callable[[int], None]
"""Called with the number of calls ahead of this one."""

GiveWay = Callable[[], Awaitable[None]]
"""Lends a turn to one call of each other client that waits, and returns when it is back."""


@dataclass(eq=False)
class _Ticket:
    client: Hashable
    on_place: OnPlace
    place: int = 0
    ready: anyio.Event = field(default_factory=anyio.Event)
    lender: _Ticket | None = None
    back: anyio.Event = field(default_factory=anyio.Event)


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

        The body may call what it gets, to lend its turn.

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
            yield partial(self._lend, ticket)
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

    async def _lend(self, lender: _Ticket) -> None:
        own, ticket = set[Hashable](), lender
        while ticket is not None:
            own.add(ticket.client)
            ticket = ticket.lender
        for _ in range(len(self._waiting)):
            guest = self._next(own)
            if guest is None:
                return
            guest.lender, lender.back = lender, anyio.Event()
            self._give(guest)
            self._tell()
            await lender.back.wait()

    def _leave(self, ticket: _Ticket) -> None:
        if ticket is self._current and ticket.lender is not None:
            self._current = ticket.lender
            ticket.lender.back.set()
        elif ticket is self._current:
            self._current = None
            if (following := self._next()) is not None:
                self._give(following)
        elif ticket.ready.is_set():  # it ended while its turn was lent
            guest = self._current
            while guest is not None and guest.lender is not ticket:
                guest = guest.lender
            if guest is not None:
                guest.lender = ticket.lender
        else:
            queue = self._waiting[ticket.client]
            queue.remove(ticket)
            if not queue:
                del self._waiting[ticket.client]
        self._tell()

    def _next(self, but: Collection[Hashable] = ()) -> _Ticket | None:
        """Takes the next client's first ticket out of the line, to the end of which the client goes."""
        free = [client for client in self._waiting if client not in but]
        if not free:
            return None
        client = free[0]
        queue = self._waiting.pop(client)
        ticket = queue.popleft()
        if queue:
            self._waiting[client] = queue
        return ticket

    def _give(self, ticket: _Ticket) -> None:
        self._current = ticket
        ticket.ready.set()

    def _tell(self) -> None:
        rounds = chain.from_iterable(zip_longest(*self._waiting.values()))
        for place, ticket in enumerate(filter(None, rounds), start=1):
            if ticket.place != place:
                ticket.place = place
                ticket.on_place(place)
