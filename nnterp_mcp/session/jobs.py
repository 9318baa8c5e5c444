"""What a running call knows of its caller: how to tell its progress, whether to stop, and where to keep what it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.session.checkpoints import Checkpoint
from nnterp_mcp.session.wire import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.session.recorder import Recorder


@dataclass
class Job:
    """One call while it runs in the worker.

    Attributes:
        id: The call's id on the wire.
        send: Sends a message to the server.
        recorder: Keeps what the call computes; None for a call that is not recorded.
        partial: Makes a result of what the call has so far; None while it has nothing to show.
    """

    id: int
    send: Callable[[Progress], None]
    recorder: Recorder | None = None
    partial: Callable[[], Result | None] | None = None
    _stopped: list[NnterpError] = field(default_factory=list)

    def stop(self, error: NnterpError) -> None:
        """Asks the call to stop before its next step, with this error."""
        self._stopped.append(error)

    def progress(self, done: float, total: float | None, message: str) -> None:
        """Tells how far the call is; a natural place to stop, so a call that was stopped raises here.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        self.check()
        self.send(Progress(id=self.id, done=done, total=total, message=message))

    def check(self) -> None:
        """Stops here if someone asked for it.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        if self._stopped:
            raise self._stopped[0]

    def keep(self, name: str, array: Tensor, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Keeps an array beside the run's result; does nothing for a call that is not recorded.

        Args:
            name: Its name, one for each array of the run.
            array: The numbers.
            axes: What stands along each axis, in order, such as `{"layer": [0, 1], "head": [0, 1, 2]}`.
        """
        if self.recorder is not None:
            self.recorder.keep(name, array, axes)

    def checkpoint(self) -> Checkpoint:
        """The parts of this call that are finished, also those of an equal call that died; empty without a record."""
        return Checkpoint(None) if self.recorder is None else self.recorder.checkpoint()
