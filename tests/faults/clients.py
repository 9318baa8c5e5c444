"""Clients that cancel, leave or vanish while their calls compute or wait."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.scene import LONG, Fault, Scene, another_client, attempt, seen
from tests.faults.wire import CALLS, Wire
from tests.serving import until


def cancelled(scene: Scene) -> str:
    long = scene.begin_long()
    long.call.cancel()
    return _end(scene, long.run_id)


def cancelled_by_run(scene: Scene) -> str:
    long = scene.begin_long()
    said = attempt(scene.client, "cancel_run", run_id=long.run_id)
    assert said == f"ok: {long.run_id} is cancelled.", said
    return seen(long.call)


def cancelled_in_the_queue(scene: Scene) -> str:
    with another_client(scene) as other:
        long = scene.begin_long()
        known = scene.run_ids("logit_lens")
        waiting = other.begin("logit_lens", prompts="a")
        (run_id,) = until(lambda: scene.run_ids("logit_lens") - known)
        waiting.cancel()
        said = _end(scene, run_id)
        assert scene.record(long.run_id)["state"] == "running"
        long.call.cancel()
        scene.ended(long.run_id)
    return said


def queue_full(scene: Scene) -> str:
    with another_client(scene) as other:
        long = scene.begin_long()
        known = scene.run_ids("logit_lens")
        waiting = [other.begin("logit_lens", prompts="a") for _ in range(2)]
        until(lambda: len(scene.run_ids("logit_lens") - known) == 2)
        said = attempt(other, "logit_lens", prompts="a")
        long.call.cancel()
        assert all(seen(call).startswith("ok: ") for call in waiting)
    return said


def leaves(how: Callable[[Wire], None], transport: str) -> Callable[[Scene], str]:
    """A client on a bare socket that leaves in mid-call."""

    def inject(scene: Scene) -> str:
        known = scene.run_ids("logit_lens")
        wire = CALLS[transport](scene.http.address, "logit_lens", prompts=LONG, model="tiny-llama")
        wire.until(b"notifications/progress")
        (run_id,) = scene.run_ids("logit_lens") - known
        how(wire)
        return _end(scene, run_id)

    return inject


def cancelled_between_groups(scene: Scene) -> str:
    """A cancel after the passes, while 24 groups of prompts are compared in every layer."""
    groups = {f"group {number}": [f"a {number}", f"b {number}"] for number in range(24)}
    known, said = scene.run_ids("collect_activations"), list[str | None]()
    call = scene.client.begin(
        "collect_activations", lambda *progress: said.append(progress[2]), prompts=groups, model="tiny-llama"
    )
    until(lambda: any(message and "summed up" in message for message in said) or call.done())
    (run_id,) = scene.run_ids("collect_activations") - known
    call.cancel()
    return _end(scene, run_id)


def _end(scene: Scene, run_id: str) -> str:
    """How a run ended whose client heard no more of it."""
    record = scene.ended(run_id, within=10)
    kept = ", partial result kept" if record["partial"] else ""
    return f"nothing; the run is {record['state']}{kept}"


_STOPPED = r"nothing; the run is cancelled, partial result kept$"
_WAYS: dict[str, Callable[[Wire], None]] = {
    "resets its connection": Wire.reset,
    "closes its connection": Wire.close,
    "closes its half of the connection": Wire.close_half,
}

FAULTS = [
    Fault("a client cancels in mid-call", cancelled, _STOPPED),
    Fault("cancel_run in mid-call", cancelled_by_run, r"cancelled: .* was cancelled"),
    Fault("a client cancels in the queue", cancelled_in_the_queue, r"nothing; the run is cancelled$"),
    Fault("a client cancels while groups are compared", cancelled_between_groups, _STOPPED),
    Fault("the queue is full", queue_full, r"limit_exceeded: 2 calls wait for tiny-llama"),
    *(
        Fault(f"a client {way} in mid-call ({transport})", leaves(how, transport), _STOPPED)
        for way, how in _WAYS.items()
        for transport in CALLS
    ),
]
