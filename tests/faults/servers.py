"""Servers that are told to end, are killed, or lose their only client; and the next server over the same store."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from tests.faults.scene import LONG, Fault, Scene
from tests.serving import ended, raw, text, until, workers_of

_END_WITHIN = 5.0


def signalled(name: str) -> Callable[[Scene], str]:
    """A signal to a server with two long calls that take turns; then another server."""

    def inject(scene: Scene) -> str:
        long = scene.begin_long()
        known = scene.run_ids("logit_lens")
        waiting = scene.client.begin("logit_lens", prompts=LONG, model="tiny-llama")
        (queued,) = until(lambda: scene.run_ids("logit_lens") - known)
        workers = workers_of(scene.process)
        begun = time.monotonic()
        scene.process.send_signal(getattr(signal, name))
        assert ended([scene.process], _END_WITHIN), f"the server lived on after {name}"
        took = time.monotonic() - begun
        assert ended(workers, _END_WITHIN), f"a worker outlived its server after {name}"
        assert took < _END_WITHIN
        waiting.cancel()
        scene.restart()
        states = [_state(scene, run_id) for run_id in (long.run_id, queued)]
        return f"the server ended; the runs are {' and '.join(states)}"

    return inject


def resumed(scene: Scene) -> str:
    """An equal call after a crash takes up the parts that the first had finished."""
    long = scene.begin_long("run_prompts")
    time.sleep(1)
    scene.process.send_signal(signal.SIGKILL)
    assert ended([scene.process], _END_WITHIN)
    scene.restart()
    again = scene.client.call("run_prompts", prompts=LONG, model="tiny-llama")
    assert not again.is_error, text(again)
    return f"the first is {_state(scene, long.run_id)}; {' '.join(again.structured_content['notes'])}"


def stdin_closed(scene: Scene) -> str:
    """The one client of a server on stdio closes its end in mid-call."""
    scene.client.call("unload_model")
    with raw(batch_tokens=1, reply_within=600, data=scene.folder / "data", runs=scene.runs) as server:
        server.initialize()
        server.call(1, "load_model", model=str(scene.model("llama")))
        assert not server.answer(1)["result"]["isError"]
        known = scene.run_ids("logit_lens")
        meta = {"progressToken": "long"}
        server.send("tools/call", 2, name="logit_lens", arguments={"prompts": LONG}, _meta=meta)
        server.notification("notifications/progress")
        (run_id,) = scene.run_ids("logit_lens") - known
        workers = server.workers()
        assert server.process.stdin is not None
        server.process.stdin.close()
        code = server.process.wait(_END_WITHIN)
        assert ended(workers, _END_WITHIN), "a worker outlived its server"
    return f"the server ended with exit code {code}; the run is {_state(scene, run_id)}"


def kept(tool: str, arguments: dict[str, Any], part: str) -> Callable[[Scene], str]:
    """SIGTERM in the middle of a tool's call; another server reads the rows that were finished."""

    def inject(scene: Scene) -> str:
        known, said = scene.run_ids(tool), list[float]()
        call = scene.client.begin(tool, lambda *progress: said.append(progress[0]), model="tiny-llama", **arguments)
        until(lambda: len(said) > 3 or call.done())
        (run_id,) = scene.run_ids(tool) - known
        scene.process.send_signal(signal.SIGTERM)
        assert ended([scene.process], 10), "the server lived on after SIGTERM"
        scene.restart()
        page = scene.client.call("read_run", run_id=run_id, part=part)
        assert not page.is_error, text(page)
        assert page.structured_content["total"] > 0
        return f"the run is {_state(scene, run_id)}"

    return inject


def _state(scene: Scene, run_id: str) -> str:
    result = scene.client.call("read_run", run_id=run_id, part="record", limit=500)
    assert not result.is_error, text(result)
    facts = dict(result.structured_content["table"]["rows"])
    return f"{facts['state']}, partial" if facts["partial"] else facts["state"]


_OWN = {"batch_tokens": 1, "reply_within": 600}
_ENDED = r"the server ended; the runs are cancelled, partial and cancelled(, partial)?$"
_KEEPING: dict[str, tuple[dict[str, Any], str]] = {
    "attention_probs": ({"prompts": LONG}, "heads"),
    "collect_activations": ({"prompts": LONG}, "rows"),
    "generate": ({"prompts": LONG, "max_new_tokens": 2}, "texts"),
    "run_prompts": ({"prompts": LONG}, "rows"),
    "steer": (
        {"prompts": LONG[:200], "vector": {"positive": " a", "negative": " b"}, "layers": "all", "factors": [1, 2]},
        "runs",
    ),
}
"""Calls that take long, and the part that has their rows."""

FAULTS = [
    Fault("SIGTERM to a server with runs in flight", signalled("SIGTERM"), _ENDED, settings=_OWN, slow=True),
    Fault("SIGINT to a server with runs in flight", signalled("SIGINT"), _ENDED, settings=_OWN, slow=True),
    Fault(
        "SIGKILL to a server with runs in flight",
        signalled("SIGKILL"),
        r"the server ended; the runs are interrupted and interrupted$",
        settings=_OWN,
        slow=True,
    ),
    Fault(
        "an equal call after a crash",
        resumed,
        r"the first is interrupted; .*[1-9]\d* .*(taken|earlier)",
        settings=_OWN,
        slow=True,
    ),
    Fault(
        "a client on stdio that closes its end in mid-call",
        stdin_closed,
        r"the server ended with exit code 0; the run is cancelled, partial$",
        settings=_OWN,
        slow=True,
    ),
    Fault(
        "SIGTERM to a server on stdio with runs in flight",
        signalled("SIGTERM"),
        _ENDED,
        transport="stdio",
        settings=_OWN,
        slow=True,
    ),
    *(
        Fault(
            f"SIGTERM in the middle of {tool}",
            kept(tool, *given),
            r"the run is cancelled, partial$",
            settings=_OWN,
            slow=True,
        )
        for tool, given in _KEEPING.items()
    ),
]
