"""The server's end of one worker: starts it, calls it, ends it."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import resources
from typing import Any

import anyio
import psutil
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from nnterp_mcp.errors import Cancelled, NnterpError, TimedOut, WorkerLost
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.messages import (
    Call,
    Cancel,
    Failure,
    FromWorker,
    Pause,
    Ping,
    Pong,
    Progress,
    Recorded,
    Reply,
    Resume,
    Start,
    ToWorker,
    from_worker,
    to_line,
)
from nnterp_mcp.pool.queue import GiveWay
from nnterp_mcp.runs.records import RunError
from nnterp_mcp.settings import Settings

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 1 << 30
_GRACE = 3.0
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "RUST_BACKTRACE": "0"}
"""A Rust library that panics for want of memory waits for itself forever if it is to write a trace as well."""
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(16 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
"""For glibc, whose dynamic thresholds lead to fragmentation by small tensors."""
_SMALLER = "Ask for less at once: fewer prompts, layers or new tokens."


class Stop:
    """Asks a call to end; the first reason counts.

    Attributes:
        error: The error for the caller, None while the call may continue.
        asked: Set when the call is to end.
    """

    def __init__(self) -> None:
        self.error: NnterpError | None = None
        self.asked = anyio.Event()

    def now(self, error: NnterpError) -> None:
        """Asks for the end."""
        self.error = self.error or error
        self.asked.set()


class WorkerProcess:
    """A worker as its server sees it.

    Attributes:
        handle: The handle of its model.
        device_memory: Bytes allocated on the accelerator after the last call, None without one.
        uncaptured: Parts of the model that could be replayed as graphs and are not, each with the reason.
        held: Bytes of weights of other models that it has read to compare with, by handle.
        ended: Set when the process has ended.
    """

    def __init__(self, handle: str, process: Process, settings: Settings) -> None:
        self.handle = handle
        self._settings = settings
        self._heard = anyio.current_time()
        self.device_memory: int | None = None
        self.uncaptured: dict[str, str] = {}
        self.held: dict[str, int] = {}
        self.ended = anyio.Event()
        self._process = process
        self._stopped: str | None = None
        self._calls: dict[int, MemoryObjectSendStream[FromWorker]] = {}
        self._ids = itertools.count(1)
        self._writing = anyio.Lock()
        self._paused: set[int] = set()

    @classmethod
    async def spawn(cls, handle: str, settings: Settings) -> WorkerProcess:
        """Starts a worker for the model that will have this handle.

        Raises:
            OSError: No process can be started.
            WorkerLost: It ended at once.
        """
        config = resources.files("nnterp_mcp.pool") / "nnsight.yaml"
        process = await anyio.open_process(
            [sys.executable, "-m", "nnterp_mcp.worker.main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            env=_MALLOC | os.environ | {"NNSIGHT_CONFIG": str(config), **_QUIET},
        )
        worker = cls(handle, process, settings)
        try:
            await worker._send(Start(handle=handle, settings=settings))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await worker._end()
            raise
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def host_memory(self) -> int | None:
        """Resident memory of the process in bytes, None when it has ended."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    async def listen(self) -> None:
        """Hands the worker's messages to the calls that wait for them, until the process ends."""
        assert self._process.stdout is not None
        stream = BufferedByteReceiveStream(self._process.stdout)
        try:
            while True:
                self._deliver(from_worker.validate_json(await stream.receive_until(b"\n", _LONGEST_MESSAGE)))
        except (
            anyio.IncompleteRead,
            anyio.EndOfStream,
            anyio.ClosedResourceError,
            anyio.BrokenResourceError,
        ):
            pass
        except Exception as error:  # nothing after it can be trusted, and the server outlives it
            self._stopped = self._stopped or "it wrote what is no message, and was ended"
            logger.error("the worker of %s wrote what is no message", self.handle, exc_info=error)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()
            self.ended.set()
            for inbox in self._calls.values():
                inbox.close()

    async def call(
        self,
        tool: str,
        params: dict[str, Any],
        on_progress: OnProgress,
        recorded: Recorded | None = None,
        stop: Stop | None = None,
        limit: float | None = None,
        give_way: GiveWay | None = None,
        handle: str = "",
    ) -> dict[str, Any]:
        """Runs a tool in the worker and returns what it replies.

        Args:
            tool: The tool's name.
            params: Its parameters.
            on_progress: Called with the call's progress.
            recorded: The run that records the call.
            stop: Ends the call before its next batch. A worker that does not stop is ended itself.
            limit: Seconds that the call may take; the server's `call_timeout` by default.
            give_way: Gives the call's turn up for a while; without it the call keeps its turn.
            handle: The model, where it is not the worker's own but shares its weights.

        Raises:
            NnterpError: What the tool raised.
            WorkerLost: The process ended before it answered.
        """
        call = Call(id=next(self._ids), handle=handle, tool=tool, params=params, recorded=recorded)
        stop = stop or Stop()
        if self.ended.is_set():
            raise self.lost()
        send, receive = anyio.create_memory_object_stream[FromWorker](math.inf)
        self._calls[call.id] = send
        outcome: dict[str, Any] | NnterpError | None = None
        self._heard = anyio.current_time()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_on, stop, call, limit or self._settings.call_timeout)
                tasks.start_soon(self._watch)
                with send, receive:
                    outcome = await self._exchange(call, receive, on_progress, give_way, stop)
                tasks.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_GRACE, shield=True):
                await self._cancel(call, Cancelled("the call was given up"))
            raise
        finally:
            self._calls.pop(call.id, None)
            self._paused.discard(call.id)
        if isinstance(outcome, NnterpError):
            raise outcome
        if outcome is None:
            raise self.lost()
        return outcome

    async def _exchange(
        self,
        call: Call,
        inbox: MemoryObjectReceiveStream[FromWorker],
        on_progress: OnProgress,
        give_way: GiveWay | None,
        stop: Stop,
    ) -> dict[str, Any] | NnterpError | None:
        """Sends a call and waits for its end; None when the process ended before."""
        try:
            await self._send(call)
        except NnterpError as error:
            return error
        async for message in inbox:
            if isinstance(message, Reply | Failure) and message.held is not None:
                self.held = message.held
            if isinstance(message, Reply):
                self.device_memory = message.device_memory
                self.uncaptured = message.uncaptured
                return message.result
            if isinstance(message, Failure):
                return message.error.error()
            if isinstance(message, Progress):
                await on_progress(message)
            if isinstance(message, Pause):
                await self._pause(call, give_way, stop)
        return None

    async def _pause(self, call: Call, give_way: GiveWay | None, stop: Stop) -> None:
        """Gives the call's turn up; one that is to end resumes at once, for the worker then ends it before a pass."""
        self._paused.add(call.id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on, stop.asked, tasks.cancel_scope)
            if give_way is not None:
                await give_way()
            self._paused.discard(call.id)
            tasks.cancel_scope.cancel()
        await self._send(Resume(id=call.id))

    async def _end_on(self, stop: Stop, call: Call, limit: float) -> None:
        """Ends a call on request or after its time limit, and the process if the call does not stop."""
        await self._wait(stop.asked, call, limit)
        if stop.error is None:
            stop.now(TimedOut(f"{call.tool} did not finish within {limit:g} s and was stopped", _SMALLER))
        assert stop.error is not None
        with anyio.move_on_after(self._settings.stop_timeout):  # a process that hears nothing may not even take it
            await self._cancel(call, stop.error)
        await self._wait(anyio.Event(), call, self._settings.stop_timeout)
        await self.stop(f"{call.tool} did not stop within {self._settings.stop_timeout:g} s of being told to")

    async def _wait(self, event: anyio.Event, call: Call, seconds: float) -> None:
        """Waits for an event, or until the call has had so many seconds in which it did not give way to others."""
        while seconds > 0 and not event.is_set():
            step = min(seconds, 1.0)
            with anyio.move_on_after(step):
                await event.wait()
            seconds -= 0.0 if call.id in self._paused else step

    async def _cancel(self, call: Call, error: NnterpError) -> None:
        try:
            await self._send(Cancel(id=call.id, error=RunError.of(error)))
        except WorkerLost:
            return

    async def _watch(self) -> None:
        """Ends a process that answers no pings: one that is merely busy still answers."""
        limit = self._settings.hang_timeout
        while True:
            await anyio.sleep(limit / 4)
            silent = anyio.current_time() - self._heard
            if silent > limit:
                await self.stop(f"it showed no sign of life for {silent:.0f} s and was ended")
                return
            with anyio.move_on_after(limit / 4), suppress(WorkerLost):  # its end is told by `listen`, to every call
                await self._send(Ping())

    async def stop(self, reason: str) -> None:
        """Ends the process: asks it by closing its input, then kills it. Calls in flight are told the first reason."""
        self._stopped = self._stopped or reason
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with anyio.move_on_after(_GRACE):
            await self.ended.wait()
        await self._end()

    def lost(self) -> WorkerLost:
        """The error of a call whose worker ended."""
        if self._stopped is not None:
            return WorkerLost(f"{self.handle} is gone: {self._stopped}", "Call load_model again.")
        return WorkerLost(
            f"the process that held {self.handle} {self._how_it_ended()}; the model and this call are lost",
            "Call load_model again; models in other processes are not affected.",
        )

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code is None:
            return "is gone"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return f"was killed by {name}" + (" (the system does so when memory runs out)" if -code == 9 else "")

    def _deliver(self, message: FromWorker) -> None:
        self._heard = anyio.current_time()
        inbox = None if isinstance(message, Pong) else self._calls.get(message.id)
        if inbox is not None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # its caller has just given up
                inbox.send_nowait(message)

    async def _send(self, message: ToWorker) -> None:
        assert self._process.stdin is not None
        try:
            async with self._writing:
                await self._process.stdin.send(to_line(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            with anyio.move_on_after(_GRACE):
                await self.ended.wait()
            raise self.lost() from None

    async def _end(self) -> None:
        if self._process.returncode is None:
            with anyio.move_on_after(0.2):
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def _cancel_on(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
