"""What a running call knows of its caller: how to tell its progress, whether to stop, and where to keep what it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.runs.arrays import HeldRows, Rows
from nnterp_mcp.worker.checkpoints import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.worker.recorder import Recorder

_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)
_R = TypeVar("_R", bound=Result)


@dataclass
class Job:
    """One call while it runs in the worker.

    Attributes:
        id: The call's id on the wire.
        send: Sends a message to the server.
        recorder: Keeps what the call computes; None for a call that is not recorded.
        partial: Makes a result of what the call has so far; None while it has nothing to show.
        remarks: What is to be said of how the input was read.
    """

    id: int
    send: Callable[[Progress], None]
    recorder: Recorder | None = None
    partial: Callable[[], Result | None] | None = None
    remarks: Mapping[str, None] = field(default_factory=dict[str, None])
    _stopped: list[NnterpError] = field(default_factory=list)
    _group: tuple[int, int, int, str] = (0, 0, 0, "")
    _last: tuple[float, float | None] = (0.0, None)

    def stop(self, error: NnterpError) -> None:
        """Asks the call to stop before its next step, with this error."""
        self._stopped.append(error)

    def progress(self, done: float, total: float | None, message: str) -> None:
        """Tells how far the call is; a natural place to stop, so a call that was stopped raises here.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        self.check()
        self._last = (done, total)
        self.send(Progress(id=self.id, done=done, total=total, message=message))

    def tell(self, message: str) -> None:
        """Tells what the call waits for, when it is no further than it was."""
        done, total = self._last
        self.send(Progress(id=self.id, done=done, total=total, message=message))

    def step(self, fraction: float, message: str) -> None:
        """Tells how far the group in hand is, inside `in_parts`; a place to stop like any other.

        Args:
            fraction: Of the group, from 0 to 1.
            message: What is going on in it.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        self.check()
        done, size, total, what = self._group
        if fraction < 1:  # the end of a group is told once, when it is kept
            self.progress(done + fraction * size, total, f"{done} of {total} {what}; {message}")

    def check(self) -> None:
        """Stops here if someone asked for it.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        if self._stopped:
            raise self._stopped[0]

    def told(self, result: _R) -> _R:
        """A result with the call's remarks."""
        result.remarks = list(self.remarks)
        return result

    def keep(self, name: str, array: Tensor, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Keeps an array beside the run's result; does nothing for a call that is not recorded.

        Args:
            name: Its name, one for each array of the run.
            array: The numbers.
            axes: What stands along each axis, in order, such as `{"layer": [0, 1], "head": [0, 1, 2]}`.
        """
        if self.recorder is not None:
            self.recorder.keep(name, array, axes)

    def keep_rows(self, name: str, axes: Mapping[str, Sequence[int | str]]) -> Rows:
        """Begins an array of float32 that is filled row by row: beside the run's result, or in memory for a call that
        is not recorded.

        Args:
            name: Its name, one for each array of the run.
            axes: What stands along each axis, in order; the first one is the rows.

        Raises:
            LimitExceeded: It cannot be written.
        """
        return HeldRows(axes) if self.recorder is None else self.recorder.keep_rows(name, axes)

    def in_parts(
        self,
        groups: Sequence[Sequence[_T]],
        kind: type[_M],
        compute: Callable[[Sequence[_T]], _M],
        assemble: Callable[[Sequence[_M], int], _R],
        what: str,
    ) -> _R:
        """Works through items group by group, so that what is finished outlasts what comes after it.

        A call that is stopped keeps the result of its finished groups as a partial one. A long call that died is taken
        up by the next equal call where it ended.

        Args:
            groups: The items, in the groups that are computed together.
            kind: The class of what comes out of a group.
            compute: Computes a group.
            assemble: Makes the result of the groups that are there; told how many items an earlier call had computed.
            what: The items' name, for the progress.

        Raises:
            NnterpError: The call was stopped, or what `compute` raised.
        """
        checkpoint = Checkpoint(None) if self.recorder is None or len(groups) == 1 else self.recorder.checkpoint()
        parts: list[_M] = []
        total, done = sum(map(len, groups)), 0
        taken = 0
        self.partial = lambda: assemble(parts, taken) if parts else None
        for number, group in enumerate(groups):
            self.check()
            self._group = (done, len(group), total, what)
            part = checkpoint.take(str(number), kind)
            if part is None:
                part = compute(group)
                checkpoint.put(str(number), part)
            else:
                taken += len(group)
            parts.append(part)
            done += len(group)
            self.progress(done, total, f"{done} of {total} {what}")
        return assemble(parts, taken)
