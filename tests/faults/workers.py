"""Worker processes that are killed, stopped, starved or speak nonsense."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.faults.scene import Fault, Long, Scene, attempt, seen

_ZERO = [{"op": "zero", "layers": "all", "site": "mlps_output"}]
_LONG_PROMPTS = ["a b c d " * 25] * 200


def killed_by(name: str) -> Callable[[Scene], str]:
    def inject(scene: Scene) -> str:
        long = scene.begin_long()
        scene.worker().send_signal(getattr(signal, name))
        return _failed(scene, long)

    return inject


def deaf(scene: Scene) -> str:
    """Stopped, then told to cancel: what it does not hear ends it."""
    long = scene.begin_long()
    scene.worker().send_signal(signal.SIGSTOP)
    attempt(scene.client, "cancel_run", run_id=long.run_id)
    said = seen(long.call)
    assert scene.record(long.run_id)["state"] in ("cancelled", "failed")
    return said


def babbling(scene: Scene) -> str:
    """Something writes to the worker's pipe what is no message."""
    long = scene.begin_long()
    with _pipe_to_server(scene.worker()).open("wb", buffering=0) as pipe:
        pipe.write(b"\n\xff\xfe Segmentation fault? {]\n")
    return _failed(scene, long)


def starved(room: int, **arguments: Any) -> Callable[[Scene], str]:
    """The kernel refuses the worker more memory than so many bytes beyond what it has."""

    def inject(scene: Scene) -> str:
        worker = scene.worker()
        unlimited = worker.rlimit(psutil.RLIMIT_AS)
        worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms + room, resource.RLIM_INFINITY))
        try:
            return attempt(scene.client, "logit_lens", prompts=_LONG_PROMPTS, positions="all", top_k=20, **arguments)
        finally:
            if worker.is_running():
                worker.rlimit(psutil.RLIMIT_AS, unlimited)

    return inject


def _failed(scene: Scene, long: Long) -> str:
    said = seen(long.call)
    assert scene.record(long.run_id)["state"] == "failed"
    return said


def _pipe_to_server(worker: psutil.Process) -> Path:
    """The worker's end of the pipe on which it answers: the one pipe that it only writes to."""
    for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
        flags = (Path(f"/proc/{worker.pid}/fdinfo") / descriptor.name).read_text().split("flags:")[1].split()[0]
        if str(descriptor.readlink()).startswith("pipe:") and int(flags, 8) & os.O_ACCMODE == os.O_WRONLY:
            return descriptor
    raise AssertionError("the worker writes to no pipe")


FAULTS = [
    Fault(
        f"{name} to a worker in mid-call",
        killed_by(name),
        rf"worker_lost: the process that held tiny-llama was killed by {name}",
        slow=True,
    )
    for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM")
]
FAULTS += [
    Fault("a worker that does not stop (stop_timeout)", deaf, r"worker_lost: .* did not stop within 2 s", slow=True),
    Fault(
        "garbage on a worker's stdout",
        babbling,
        r"worker_lost: tiny-llama is gone: it wrote what is no message",
        slow=True,
    ),
    Fault(
        "a worker out of memory (RLIMIT_AS)",
        starved(8 << 20),
        r"out_of_memory: |worker_lost: .* was killed by SIGABRT",
        slow=True,
    ),
    Fault("out of memory within an intervention", starved(8 << 20, interventions=_ZERO), r"out_of_memory: ", slow=True),
    Fault("out of memory before a call begins", starved(0), r"out_of_memory: ", slow=True),
]
