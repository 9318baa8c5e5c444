"""Faults on the way to a real NDIF, over MCP: what the client sees, and whether the session is whole afterwards.

    python -m tests.ndif.faults FOLDER [WORD …]

FOLDER holds the environment that `tests.ndif.deployment install` made; an NDIF is started for the faults, since some of
them end it. With words, only the faults whose names contain one of them.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ndif.deployment import API, Deployment, deployed
from tests.ndif.gateway import PASS, REFUSE, RESET, SLOW, Gateway, gateway
from tests.serving import Caller, stdio, workers_of

PROMPT = "The capital of France is"
KEY = "00000000-1111-2222-3333-444444444444"
LONG = {"tool": "generate", "prompts": [PROMPT] * 8, "max_new_tokens": 512}
"""A call that takes minutes."""

REPLY_WITHIN = 15
"""Seconds until a call answers that it goes on; each is then waited for."""


@dataclass
class Scene:
    """A server with a served model, and the way to the service.

    Attributes:
        client: The server's client.
        handle: The served model.
        source: What it was loaded by.
        way: The gateway.
        service: What is behind it.
    """

    client: Caller
    handle: str
    source: str
    way: Gateway
    service: Deployment

    def call(self, tool: str = "logit_lens", **arguments: Any) -> Any:
        """A call on the served model."""
        return self.client.call(tool, **({"prompts": PROMPT, "model": self.handle} | arguments))

    def load(self, **arguments: Any) -> Any:
        """A load of another handle."""
        asked = {"model": self.source, "backend": "ndif", "attention": "eager"} | arguments
        answer = self.client.call("load_model", **asked)
        while not answer.is_error and "model" not in answer.structured_content:  # it is still loading
            answer = self.client.call("load_model", **asked)
        return answer

    def ended(self, answer: Any) -> Any:
        """An answer, or what came of the run that it says goes on."""
        run = (answer.structured_content or {}).get("run_id")
        if answer.is_error or run is None or "goes on" not in answer.content[0].text:
            return answer
        return self.client.call("read_run", run_id=run, wait_seconds=REPLY_WITHIN)

    def later(self, act: Callable[[], None], seconds: float = 3.0) -> None:
        """Does something while a call runs."""
        threading.Timer(seconds, act).start()


def refused(scene: Scene) -> Any:
    scene.way.fail(REFUSE)
    return scene.call()


def refused_at_load(scene: Scene) -> Any:
    scene.way.fail(REFUSE)
    return scene.load()


def reset(scene: Scene) -> Any:
    scene.later(lambda: scene.way.fail(RESET))
    return scene.call(**LONG)


def slow(scene: Scene) -> Any:
    scene.way.fail(SLOW)
    return scene.call()


def slow_in_the_middle(scene: Scene) -> Any:
    scene.later(lambda: scene.way.fail(SLOW))
    return _cancelled(scene, scene.call(**LONG))


def _cancelled(scene: Scene, going_on: Any) -> Any:
    run = going_on.structured_content["run_id"]
    scene.client.call("cancel_run", run_id=run)
    return scene.client.call("read_run", run_id=run, wait_seconds=REPLY_WITHIN)


def wrong_key(scene: Scene) -> Any:
    scene.way.reply = (400, {"detail": f"Invalid API key format: '{KEY}'."})
    return scene.call()


def unknown_key(scene: Scene) -> Any:
    scene.way.reply = (403, {"detail": "Invalid API key."})
    return scene.call()


def other_version(scene: Scene) -> Any:
    scene.way.reply = (200, {"python_version": "3.12.1", "packages": {"nnsight": "0.9.0"}})
    return scene.load()


def too_old(scene: Scene) -> Any:
    scene.way.reply = (400, {"detail": "Client nnsight version 0.8.1 is below the required 0.9.0."})
    return scene.load()


def no_ndif(scene: Scene) -> Any:
    scene.way.reply = (404, {"detail": "Not Found"})
    return scene.call()


def reconnecting(scene: Scene) -> Any:
    scene.way.reply = (503, {"detail": "Service temporarily unavailable: compute backend is reconnecting."})
    return scene.call()


def restarted(scene: Scene) -> Any:
    def restart() -> None:
        scene.service.stop_api()
        scene.service.start_api()

    scene.later(restart)
    answer = scene.call(**LONG)
    scene.service.wait()
    return answer


def actor_killed(scene: Scene) -> Any:
    scene.later(scene.service.kill_actor)
    return scene.call(**LONG)


def cancelled(scene: Scene) -> Any:
    return _cancelled(scene, scene.call(**LONG))


def unknown_model(scene: Scene) -> Any:
    return scene.load(model=str(Path(scene.source).parent / "absent"))


def refused_tool(scene: Scene) -> Any:
    return scene.call("attribute", targets={"answer": "Paris"}, method="gradient")


def refused_operation(scene: Scene) -> Any:
    return scene.call(interventions=[{"op": "knockout", "layers": 3, "heads": [0]}])


FAULTS: dict[str, Callable[[Scene], Any]] = {
    "the service refuses connections": refused,
    "… at load": refused_at_load,
    "the connection is reset in the middle of a call": reset,
    "the service takes connections and says nothing": slow,
    "it falls silent in the middle, and the run is cancelled": slow_in_the_middle,
    "a malformed key (which the service quotes)": wrong_key,
    "an unknown key": unknown_key,
    "the service runs another generation of nnsight": other_version,
    "the service wants a newer client": too_old,
    "something else answers at the address": no_ndif,
    "the service has lost its backend": reconnecting,
    "the API restarts in the middle of a call": restarted,
    "the model's process is killed in the middle of a call": actor_killed,
    "a long call is cancelled": cancelled,
    "a folder that is not there": unknown_model,
    "a method that is not offered": refused_tool,
    "an intervention that cannot be sent": refused_operation,
}


def main(folder: Path, words: Sequence[str]) -> int:
    """Prints the table; returns how many faults left something broken."""
    broken = 0
    chosen = {name: fault for name, fault in FAULTS.items() if not words or any(word in name for word in words)}
    print("| fault | what the client saw | worker alive | next call worked | seconds |\n|---|---|---|---|---|")
    with deployed(folder) as service, _scene(service) as scene:
        worker = [process.pid for process in workers_of(scene.client.server)]
        for name, fault in chosen.items():
            begun = time.monotonic()
            answer = scene.ended(fault(scene))
            seconds = time.monotonic() - begun
            scene.way.reply = None
            scene.way.fail(PASS)
            alive = set(worker) <= {process.pid for process in workers_of(scene.client.server)}
            works = not _settled(scene).is_error
            said = " ".join(answer.content[0].text.split())
            assert KEY not in said
            broken += not (alive and works)
            print(f"| {name} | {said[:260]} | {_said(alive)} | {_said(works)} | {seconds:.1f} |", flush=True)
    print(f"\n{len(chosen)} faults, {broken} of them left something broken")
    return broken


def _settled(scene: Scene) -> Any:
    """A call once the service is there again; it may have to deploy the model anew."""
    until = time.monotonic() + 120
    answer = scene.call()
    while answer.is_error and time.monotonic() < until:
        time.sleep(2)
        answer = scene.call()
    return answer


def _said(true: bool) -> str:
    return "yes" if true else "NO"


@contextmanager
def _scene(service: Deployment) -> Generator[Scene]:
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.model.loading.locations import BUILTIN
    from nnterp_mcp.settings import Settings

    source = str(locate(BUILTIN, None, Settings().cache, False, lambda message: None).folder)
    with gateway(API) as way, tempfile.TemporaryDirectory() as data:
        settings = {
            "ndif_host": way.address,
            "data": data,
            "folders": f'["{Path(source).parent}"]',
            "reply_within": REPLY_WITHIN,
            "NDIF_API_KEY": KEY,
        }
        with stdio(**settings) as client:
            loaded = client.call("load_model", model=source, backend="ndif")
            while not loaded.is_error and "model" not in loaded.structured_content:  # it is still loading
                loaded = client.call("load_model", model=source, backend="ndif")
            assert not loaded.is_error, loaded.content[0].text
            yield Scene(client, loaded.structured_content["model"], source, way, service)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
