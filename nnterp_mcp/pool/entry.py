"""One model of the pool."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import anyio

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.pool.followers import Followers
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.pool.process import WorkerProcess
from nnterp_mcp.pool.queue import Turns
from nnterp_mcp.request.adapter_folder import pinned
from nnterp_mcp.request.operations import Operation


@dataclass(eq=False)
class Entry:
    """One model of the pool, from the start of its load to its end.

    Attributes:
        handle: Its name in calls.
        source: The `model` argument of `load_model`.
        request: All parameters of that call: the same request gets the same entry.
        turns: The queue of its calls.
        edits: Operations applied in every call that runs the model.
        card: The load's result, None while it loads.
        since: When the load began, in seconds since the epoch.
        progress: The latest progress of the load.
        base: The model whose worker and weights it shares; None for one with a worker of its own.
        scaled: True for a loaded adapter at another scale, which its first use made.
        used: When a call last asked for it, on the clock of `time.monotonic`.
    """

    handle: str
    source: str
    request: dict[str, Any]
    turns: Turns
    edits: tuple[Operation, ...] = ()
    since: float = field(default_factory=time.time)
    card: dict[str, Any] | None = None
    worker: WorkerProcess | None = None
    error: NnterpError | None = None
    progress: Progress | None = None
    loaded: anyio.Event = field(default_factory=anyio.Event)
    followers: Followers = field(default_factory=Followers)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    base: Entry | None = None
    scaled: bool = False
    used: float = field(default_factory=time.monotonic)

    @property
    def within(self) -> str:
        """Its name in a worker that it shares; empty in its own."""
        return "" if self.base is None else self.handle

    @property
    def resolved(self) -> dict[str, Any]:
        """The parameters of its load with the commits that were found then."""
        card, request = self.card or {}, dict(self.request)
        request["revision"] = card.get("revision") or request.get("revision")
        if request.get("adapter") is not None:
            request["adapter"] = pinned(request["adapter"], card.get("adapter_revision"))
        return request

    async def publish(self, progress: Progress) -> None:
        """Sends the progress of the load to every caller that waits for it."""
        self.progress = progress
        self.followers.send(progress)
