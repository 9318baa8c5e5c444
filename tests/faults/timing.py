"""Calls that take too long, and workers that show no sign of life."""

from __future__ import annotations

import signal

from tests.faults.scene import Fault, Scene, seen


def past_its_time(scene: Scene) -> str:
    long = scene.begin_long()
    said = seen(long.call)
    record = scene.ended(long.run_id)
    assert (record["state"], record["partial"]) == ("failed", True)
    return said


def hanging(scene: Scene) -> str:
    long = scene.begin_long()
    scene.worker().send_signal(signal.SIGSTOP)
    said = seen(long.call)
    assert scene.record(long.run_id)["state"] == "failed"
    return said


FAULTS = [
    Fault(
        "a call past call_timeout",
        past_its_time,
        r"timed_out: logit_lens did not finish within 4 s and was stopped",
        settings={"batch_tokens": 1, "call_timeout": 4, "reply_within": 600},
        slow=True,
    ),
    Fault(
        "SIGSTOP to a worker in mid-call (hang_timeout)",
        hanging,
        r"worker_lost: tiny-llama is gone: it showed no sign of life for",
        settings={"batch_tokens": 1, "hang_timeout": 10, "reply_within": 600},
        slow=True,
    ),
]
