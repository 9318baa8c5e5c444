"""The worker's process: one model, whose passes run on the main thread, those of one call at a time.

It exits when its standard input closes, so that no worker outlives its server, however that ended.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from greenlet import getcurrent, greenlet

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import Internal, NnterpError, OutOfMemory, Unsupported, WorkerLost, is_panic
from nnterp_mcp.pool.messages import (
    Call,
    Failure,
    FromWorker,
    Pause,
    Ping,
    Pong,
    Reply,
    Resume,
    Start,
    to_line,
    to_worker,
)
from nnterp_mcp.redaction import hide, redact
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.runs.records import RunError
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.tables import name_parts
from nnterp_mcp.toolset import specs
from nnterp_mcp.worker.benches import Benches
from nnterp_mcp.worker.execution import run_tool, runs_passes
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.recorder import WRITING, Recorder
from nnterp_mcp.worker.threads import Threads
from nnterp_mcp.worker.warming import WARMING_CALLS, Step, import_libraries, warm, warming_steps
from nnterp_mcp.worker.workbench import Bench

_BEFORE_ANSWER, _BEFORE_FIRST = 3.0, 8.0
"""Seconds by which a load's answer waits, at most, so that the first call after it is as fast as the next; and that of
the first load of some files, since what is tried on them then is known at later ones."""

_LAST_WRITE = 2.0
"""Seconds that the exit of a worker waits for a record that is being written."""

_KEPT = "What was finished is kept: read_run shows it under {!r}."


class Inbox:
    """Reads the server's messages on its own thread, so that a cancellation arrives during a computation."""

    def __init__(self, source: BinaryIO, outbox: Outbox) -> None:
        self.calls: queue.Queue[tuple[Call, Job] | Resume] = queue.Queue()
        self.start: queue.Queue[Start] = queue.Queue()
        self._source = source
        self._outbox = outbox
        self._jobs: dict[int, Job] = {}
        self.looks: queue.Queue[tuple[Call, Job]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def finish(self, job: Job) -> None:
        """Forgets a job that ended."""
        self._jobs.pop(job.id, None)

    def _read(self) -> None:
        for line in self._source:
            message = to_worker.validate_json(line)
            if isinstance(message, Start):
                self.start.put(message)
            elif isinstance(message, Call):
                job = Job(message.id, self._outbox.send)
                self._jobs[message.id] = job
                passes = runs_passes(specs()[message.tool])
                (self.calls if passes else self.looks).put((message, job))
            elif isinstance(message, Resume):
                self.calls.put(message)
            elif isinstance(message, Ping):
                self._outbox.send(Pong())
            elif (job := self._jobs.get(message.id)) is not None:
                job.stop(message.error.error())
                self.calls.put(Resume(id=message.id))  # a call that gave way ends too
        WRITING.acquire(timeout=_LAST_WRITE)
        os._exit(0)


class Outbox:
    """Sends messages to the server, whole, from any thread."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._lock = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Writes one message."""
        with self._lock:
            self._sink.write(to_line(message))
            self._sink.flush()


class Desk:
    """Serves the calls of one model, each in a greenlet of the main thread; calls that run no pass on another thread.

    One greenlet runs at a time, and another only once it has ended or given way.
    """

    def __init__(self, benches: Benches, inbox: Inbox, outbox: Outbox) -> None:
        self._benches = benches
        self._inbox = inbox
        self._outbox = outbox
        self._paused: dict[int, greenlet] = {}
        self._main = getcurrent()
        self._threads = Threads()

    def serve(self) -> None:
        """Runs calls one after another; one that gives way continues when it is resumed."""
        while True:
            message = self._inbox.calls.get()
            self._threads.choose()
            if not isinstance(message, Resume):
                self._begin(*message)
            elif (paused := self._paused.pop(message.id, None)) is not None:
                paused.switch()

    def _begin(self, call: Call, job: Job) -> None:
        try:
            greenlet(partial(self._run, call, job)).switch()
        except MemoryError as error:  # the first frame of a greenlet takes a block of memory, outside of every handler
            _RESERVE.clear()
            self._send(job, _failure(call, job, error))
            _reserve()

    def _run(self, call: Call, job: Job) -> None:
        if call.recorded is not None:
            job.give_way = partial(self._give_way, job)
        answer = _answer(self._benches, call, job)
        loaded = call.tool == "load_model" and not call.handle and isinstance(answer, Reply)
        left = self._warm_first() if loaded else iter(())
        self._send(job, answer)
        job.settle()
        _reserve()
        warm(left, waiting=self._is_waiting)

    def _warm_first(self) -> Iterator[Step]:
        """Warms the model before its load is answered; returns the steps that are left for afterwards."""
        own = self._benches.own
        steps = warming_steps(own) if own.files is not None else iter(())
        count, seconds = (1, _BEFORE_ANSWER) if own.model.checked_before else (WARMING_CALLS, _BEFORE_FIRST)
        warm(itertools.islice(steps, count), waiting=self._is_waiting, seconds=seconds)
        return steps

    def _is_waiting(self) -> bool:
        return not self._inbox.calls.empty()

    def _give_way(self, job: Job) -> None:
        self._paused[job.id] = getcurrent()
        self._outbox.send(Pause(id=job.id))
        self._main.switch()

    def look(self) -> None:
        """Runs calls that run no pass, while a pass may be under way."""
        while True:
            call, job = self._inbox.looks.get()
            found = _answer(self._benches, call, job) if self._benches.has(call.handle) else None
            if found is None or (isinstance(found, Failure) and found.error.code == Internal.code):
                self._inbox.calls.put((call, job))  # a tokenizer refuses two threads at once: once more, alone
            else:
                self._send(job, found)

    def _send(self, job: Job, answer: Reply | Failure) -> None:
        self._outbox.send(answer)
        self._inbox.finish(job)


def work() -> None:
    """Serves calls from standard input until it closes."""
    source, sink = _claim_pipes()
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox = Outbox(sink)
    inbox = Inbox(source, outbox)
    start = inbox.start.get()
    hide(start.settings.take_secrets())
    bench = Bench(start.handle, start.settings)
    _reserve()
    desk = Desk(Benches(bench), inbox, outbox)
    threading.Thread(target=desk.look, daemon=True).start()
    desk.serve()


def _answer(benches: Benches, call: Call, job: Job) -> Reply | Failure:
    try:
        job.check()
        bench = benches.find(call)
        if call.recorded is not None:
            bench.seconds.learn(call.recorded.others)
            job.recorder = Recorder(RunStore(bench.settings.runs), lambda: bench.environment, call.recorded)
            job.settle = partial(job.recorder.settle, bench.files)  # the bench may be gone when a call ends
        result = _run(bench, call, job)
        benches.settle(call, bench)
        answer = _close(call, job, result)
        return Reply(
            id=call.id,
            result=answer,
            device_memory=_device_memory(),
            uncaptured=bench.uncaptured,
            held=benches.seconds.held,
        )
    except BaseException as error:  # libraries raise what is no Exception, too: it ends the call, not the model
        _RESERVE.clear()  # before anything that allocates
        return _failure(call, job, error, benches.seconds.held)


def _failure(call: Call, job: Job, error: BaseException, held: dict[str, int] | None = None) -> Failure:
    return Failure(id=call.id, error=RunError.of(_give_up(job, error)), held=held)


def _run(bench: Bench, call: Call, job: Job) -> Result:
    spec = specs()[call.tool]
    if call.tool == "load_model":
        job.tell("starting the worker's libraries", 0.0, 1)
        import_libraries()
    return run_tool(bench, spec, spec.params.model_validate(call.params), job)


def _close(call: Call, job: Job, result: Result) -> dict[str, Any]:
    """Records a result; returns the answer, or the result of a call without a record."""
    if job.recorder is None:
        return result.model_dump(mode="json")
    answer = specs()[call.tool].summarize(result)
    answer.notes += job.recorder.finish(result, answer)
    if job.recorder.tables is not None:
        answer.notes.append(name_parts(job.recorder.tables, job.recorder.arrays))
    return answer.model_dump(mode="json")


_RESERVE: list[bytearray] = []
"""Memory for the failure of a call that ran out of it, until that is recorded and sent: where Python gets none for its
own small objects, no handler runs, and pydantic hangs."""


def _reserve() -> None:
    if _RESERVE:
        return
    with suppress(MemoryError):
        _RESERVE[:] = [bytearray(64 << 20)]  # zeros that nobody has touched take address space alone


def _give_up(job: Job, error: BaseException) -> NnterpError:
    """The error for the caller, after the partial result was recorded."""
    known = error if isinstance(error, NnterpError) else _translate(error)
    if job.recorder is None:
        return known
    partial = _partial(job)
    job.recorder.fail(known, partial)
    if partial is None:
        return known
    return type(known)(known.message, f"{known.next_step} {_KEPT.format(job.recorder.run_id)}".strip())


def _partial(job: Job) -> Result | None:
    """The partial result of a call; an error here must not hide why the call ended, nor end the process."""
    try:
        found = job.partial() if job.partial is not None else None
        return None if found is None else job.told(found)
    except BaseException as error:
        traceback.print_exception(error, file=sys.stderr)
        return None


def _translate(error: BaseException) -> NnterpError:
    import torch

    from nnterp_mcp.model.memory import is_out_of_memory

    if is_out_of_memory(error):
        return OutOfMemory("the call did not fit the memory", "Use fewer or shorter prompts, or fewer layers.")
    if is_panic(error):
        return Unsupported(
            f"a library under the model, its tokenizer perhaps, gave up: {shown(str(error))}",
            "Try another input; where every one fails, load the model with the tokenizer that belongs to it.",
        )
    log_id = uuid.uuid4().hex[:8]
    print(f"[{log_id}]", redact("".join(traceback.format_exception(error))), sep="\n", file=sys.stderr)
    if isinstance(error, torch.AcceleratorError):
        # A device-side assertion leaves the device unusable for this process.
        threading.Timer(0.5, os._exit, args=(70,)).start()
        return WorkerLost(f"the accelerator failed and the model was lost (log id {log_id})", "Call load_model again.")
    return Internal(
        f"an unexpected {type(error).__name__} in the worker (log id {log_id})",
        "The server's log holds the details under that id; other calls are not affected.",
    )


def _device_memory() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.memory_allocated())


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Reserves standard input and output for messages; output of libraries goes to standard error."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def _die_with_parent() -> None:
    """On Linux the kernel ends the worker with its server, even while the worker is stopped or deep in native code."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    parent: Any = os.getppid()
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    work()
