"""The server's end of one worker: starts it, calls it, ends it."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import anyio
import psutil
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectSendStream
from pydantic import ValidationError

from nnterp_mcp.errors import WorkerLost
from nnterp_mcp.session.wire import (
    Call,
    Cancel,
    Failure,
    FromWorker,
    Progress,
    Reply,
    Start,
    ToWorker,
    encode,
    from_worker,
)
from nnterp_mcp.settings import Settings

logger = logging.getLogger(__name__)

OnProgress = Callable[[Progress], Awaitable[None]]

_LONGEST_MESSAGE = 1 << 30
_GRACE = 3.0


class WorkerProcess:
    """A worker as its server sees it.

    Attributes:
        handle: The handle of the model that it holds.
        device_memory: Bytes held on the accelerator after the last call, None without one.
        ended: Set when the process has ended.
    """

    def __init__(self, handle: str, process: Process) -> None:
        self.handle = handle
        self.device_memory: int | None = None
        self.ended = anyio.Event()
        self._process = process
        self._stopped: str | None = None
        self._calls: dict[int, MemoryObjectSendStream[FromWorker]] = {}
        self._ids = itertools.count(1)
        self._writing = anyio.Lock()

    @classmethod
    async def spawn(cls, handle: str, settings: Settings) -> WorkerProcess:
        """Starts a worker for the model that will have this handle."""
        config = resources.files("nnterp_mcp.session") / "nnsight.yaml"
        process = await anyio.open_process(
            [sys.executable, "-m", "nnterp_mcp.session.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            env=os.environ | {"NNSIGHT_CONFIG": str(config), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"},
        )
        worker = cls(handle, process)
        await worker._send(Start(handle=handle, settings=settings))
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def host_memory(self) -> int | None:
        """Bytes of memory that the process holds, None when it has ended."""
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
        except ValidationError as error:  # nothing after it can be trusted, and the server outlives it
            logger.error("the worker of %s wrote what is no message", self.handle, exc_info=error)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()
            self.ended.set()
            for inbox in self._calls.values():
                inbox.close()

    async def call(self, tool: str, params: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        """Runs a tool in the worker and returns its result's data.

        Raises:
            NnterpError: What the tool raised.
            WorkerLost: The process ended before it answered.
        """
        call = Call(id=next(self._ids), tool=tool, params=params)
        send, receive = anyio.create_memory_object_stream[FromWorker](math.inf)
        if self.ended.is_set():
            raise self.lost()
        self._calls[call.id] = send
        try:
            with send, receive:
                await self._send(call)
                async for message in receive:
                    if isinstance(message, Reply):
                        self.device_memory = message.device_memory
                        return message.result
                    if isinstance(message, Failure):
                        raise message.error()
                    await on_progress(message)
            raise self.lost()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._send(Cancel(id=call.id))
            raise
        finally:
            self._calls.pop(call.id, None)

    async def stop(self, reason: str) -> None:
        """Ends the process: asks it by closing its input, then kills it. Calls in flight are told the reason."""
        self._stopped = reason
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
        inbox = self._calls.get(message.id)
        if inbox is not None:
            inbox.send_nowait(message)

    async def _send(self, message: ToWorker) -> None:
        assert self._process.stdin is not None
        try:
            async with self._writing:
                await self._process.stdin.send(encode(message))
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
