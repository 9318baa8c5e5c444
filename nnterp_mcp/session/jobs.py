"""What a running call knows of its caller: how to tell its progress, and whether it was cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from nnterp_mcp.errors import Cancelled
from nnterp_mcp.session.wire import Progress


@dataclass(frozen=True)
class Job:
    """One call while it runs in the worker.

    Attributes:
        id: The call's id on the wire.
        send: Sends a message to the server.
    """

    id: int
    send: Callable[[Progress], None]
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Asks the call to stop before its next step."""
        self._cancelled.set()

    def progress(self, done: float, total: float | None, message: str) -> None:
        """Tells how far the call is; a natural place to stop, so a cancelled call raises here.

        Raises:
            Cancelled: The caller no longer wants the answer.
        """
        self.check()
        self.send(Progress(id=self.id, done=done, total=total, message=message))

    def check(self) -> None:
        """Stops here if the caller cancelled.

        Raises:
            Cancelled: The caller no longer wants the answer.
        """
        if self._cancelled.is_set():
            raise Cancelled("the call was cancelled")
