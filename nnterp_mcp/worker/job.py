"""A running call: its progress, its cancellation, its partial results and its arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.formatting import seconds as duration
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.runs.arrays import HeldRows, Rows
from nnterp_mcp.worker.checkpoints import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.worker.recorder import Recorder

_TURN = 0.1
"""Seconds that a call computes, at least, before it gives way to others."""

_M = TypeVar("_M")
_R = TypeVar("_R", bound=Result)


@dataclass(frozen=True)
class Finished(Generic[_M]):
    """The results of a call so far.

    Attributes:
        items: The results, in the order of the request.
        taken: How many of them an earlier call had computed.
        seconds: The time that they took.
    """

    items: list[_M]
    taken: int
    seconds: float


@dataclass(frozen=True)
class _Group:
    """The items that are being computed: how many, after how many others, of how many, and what they are called."""

    size: int
    done: int
    total: int
    unit: str


@dataclass
class Job:
    """One call while it runs in the worker.

    Attributes:
        id: The call's id on the wire.
        send: Sends a message to the server.
        recorder: Writes the results of the call to disk; None for a call that is not recorded.
        partial: Makes a result of what is computed so far; None before anything is.
        remarks: Notes on how the input was read.
        give_way: Runs calls that wait for the model, while this one has no pass under way; None where none can.
        settle: Completes the record of the call after its answer was sent.
    """

    id: int
    send: Callable[[Progress], None]
    recorder: Recorder | None = None
    partial: Callable[[], Result | None] | None = None
    remarks: Mapping[str, None] = field(default_factory=dict[str, None])
    give_way: Callable[[], None] | None = None
    settle: Callable[[], None] = lambda: None
    _stopped: list[NnterpError] = field(default_factory=list)
    _group: _Group | None = None
    _last: tuple[float, float | None] = (0.0, None)
    _paused: bool = False

    def stop(self, error: NnterpError) -> None:
        """Asks the call to stop before its next step, with this error."""
        self._stopped.append(error)

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Reports how far the call is; a natural place to stop, so a call that was stopped raises here.

        Args:
            done: How much is done; inside `in_parts`, of the group that is being computed.
            total: Of how much; None where that is not known.
            unit: What is counted.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        self.check()
        message = f"{done} {unit}" if total is None else f"{done} of {total} {unit}"
        group = self._group
        if group is None:
            self.tell(message, done, total)
        elif total is not None and done < total:  # the end of a group is reported once, when it is recorded
            reached = group.done + group.size * done / total
            self.tell(f"{group.done} of {group.total} {group.unit}; {message}", reached, group.total)

    def tell(self, message: str, done: float | None = None, total: float | None = None) -> None:
        """Sends a message, such as what the call waits for.

        Args:
            message: The message.
            done: How far the call is; by default no further than it was.
            total: Of how much.
        """
        if done is not None:
            self._last = (done, total)
        done, total = self._last
        self.send(Progress(id=self.id, done=done, total=total, message=message))

    def check(self) -> None:
        """Stops here if someone asked for it.

        Raises:
            NnterpError: The call was cancelled, or ran past its time.
        """
        if self._stopped and not self._paused:  # its hooks stay on the model while another call runs
            raise self._stopped[0]

    def told(self, result: _R) -> _R:
        """Adds the call's remarks to a result."""
        result.remarks = [*result.remarks, *self.remarks]
        return result

    def keep(self, name: str, array: Tensor, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Writes an array to the run's folder; does nothing for a call that is not recorded.

        Args:
            name: Its name, one for each array of the run.
            array: The numbers.
            axes: The labels along each axis, in order, such as `{"layer": [0, 1], "head": [0, 1, 2]}`.
        """
        if self.recorder is not None:
            self.recorder.keep(name, array, axes)

    def keep_rows(self, name: str, axes: Mapping[str, Sequence[int | str]]) -> Rows:
        """Begins a float32 array that is filled row by row: in the run's folder, or in memory for a call that is not
        recorded.

        Args:
            name: Its name, one for each array of the run.
            axes: The labels along each axis, in order; the first axis holds the rows.

        Raises:
            LimitExceeded: It cannot be written.
        """
        return HeldRows(axes) if self.recorder is None else self.recorder.keep_rows(name, axes)

    def _pause(self, give_way: Callable[[], None]) -> None:
        begun = time.monotonic()
        self._paused = True
        give_way()
        self._paused = False
        if self.recorder is not None:
            self.recorder.idle += time.monotonic() - begun

    def in_parts(
        self,
        groups: Sequence[Sequence[int]],
        kind: type[_M],
        compute: Callable[[Sequence[int]], Iterable[_M]],
        assemble: Callable[[Finished[_M]], _R],
        unit: str = "prompts",
        *,
        checkpoints: bool = True,
        left: Callable[[], float] = lambda: 0.0,
        found: dict[int, _M] | None = None,
    ) -> _R:
        """Computes items group by group, so that finished groups survive a later failure.

        Between groups it gives way to other calls. A stopped call leaves the result of its finished groups as a partial
        one. If the process dies, the next equal call resumes after the last finished group.

        Args:
            groups: The items that are computed together, as indices into the request.
            kind: The type of an item's result.
            compute: Computes the items of a group.
            assemble: Makes the call's result of the finished items.
            unit: The name of the items in the progress.
            checkpoints: False if `compute` saves what it has computed by itself.
            left: The seconds that the rest will take; told after each group where it is a second or more.
            found: Filled with the finished items by their number, for a `compute` that builds on earlier ones.

        Raises:
            NnterpError: The call was stopped, or what `compute` raised.
        """
        recorder = self.recorder if checkpoints and len(groups) > 1 else None
        checkpoint = Checkpoint(None) if recorder is None else recorder.checkpoint()
        done: dict[int, _M] = {} if found is None else found
        taken, seconds, total = 0, 0.0, sum(map(len, groups))

        def finished() -> Finished[_M]:
            return Finished([done[number] for number in sorted(done)], taken, seconds)

        self.partial = lambda: assemble(finished()) if done else None
        turn = time.monotonic()
        for name, group in enumerate(groups):
            self.check()
            part = checkpoint.take(str(name), tuple[list[kind], float])
            if part is None:
                begun = time.monotonic()
                self._group = _Group(len(group), len(done), total, unit)
                items = list(compute(group))
                self._group = None
                part = items, time.monotonic() - begun
                checkpoint.put(str(name), part)
            else:
                taken += len(group)
            done |= zip(group, part[0], strict=True)
            seconds += part[1]
            rest = left()
            self.progress(len(done), total, f"{unit}, about {duration(rest)} left" if rest >= 1 else unit)
            if self.give_way is not None and len(done) < total and time.monotonic() - turn > _TURN:
                self._pause(self.give_way)
                turn = time.monotonic()
        return assemble(finished())
