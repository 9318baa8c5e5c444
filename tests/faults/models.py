"""Loads that are killed, crowded out or find no model any more."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable

from tests.faults.scene import Fault, Scene, attempt, seen
from tests.serving import text, until, workers_of


def killed_while_loading(name: str) -> Callable[[Scene], str]:
    def inject(scene: Scene) -> str:
        before = workers_of(scene.process)
        said: list[float] = []
        load = scene.client.begin(
            "load_model", lambda *progress: said.append(progress[0]), model=str(scene.model("gpt2"))
        )
        until(lambda: said)
        (started,) = [worker for worker in workers_of(scene.process) if worker not in before]
        started.send_signal(getattr(signal, name))
        return seen(load)

    return inject


def pool_full(scene: Scene) -> str:
    said: list[float] = []
    load = scene.client.begin("load_model", lambda *progress: said.append(progress[0]), model=str(scene.model("gpt2")))
    until(lambda: said)
    refused = attempt(scene.client, "load_model", model=str(scene.model("gemma2")))
    load.cancel()
    until(lambda: len(workers_of(scene.process)) == 1)
    return refused


def truncated(scene: Scene) -> str:
    folder = shutil.copytree(scene.model("gpt2"), scene.folder / "truncated")
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return attempt(scene.client, "load_model", model=str(folder))


def vanished(scene: Scene) -> str:
    """The folder goes while the model is loaded: it serves on, and cannot be loaded again."""
    folder = shutil.copytree(scene.model("gpt2"), scene.folder / "vanishing")
    assert not scene.client.call("load_model", model=str(folder)).is_error
    shutil.rmtree(folder)
    scene.lens(model="vanishing")
    assert "is unloaded" in text(scene.client.call("unload_model", model="vanishing"))
    return attempt(scene.client, "load_model", model=str(folder))


def unloaded_handle(scene: Scene) -> str:
    scene.load("gpt2")
    assert not scene.client.call("unload_model", model="tiny-gpt2").is_error
    return attempt(scene.client, "logit_lens", prompts="a", model="tiny-gpt2")


def unloaded_in_mid_call(scene: Scene) -> str:
    long = scene.begin_long()
    assert not scene.client.call("unload_model", model="tiny-llama").is_error
    return seen(long.call)


def stuck_load(scene: Scene) -> str:
    """A load that answers nothing any more, and is unloaded while the server asks it for a sign of life."""
    before = workers_of(scene.process)
    said: list[float] = []
    load = scene.client.begin("load_model", lambda *progress: said.append(progress[0]), model=str(scene.model("gpt2")))
    until(lambda: said)
    (stuck,) = [worker for worker in workers_of(scene.process) if worker not in before]
    stuck.send_signal(signal.SIGSTOP)
    unloaded = attempt(scene.client, "unload_model", model="tiny-gpt2")
    assert unloaded.startswith("ok: tiny-gpt2 is unloaded"), unloaded
    assert workers_of(scene.process) == before
    return seen(load)


def crowded_folder(scene: Scene) -> str:
    """A folder of 20,000 files."""
    folder = scene.folder / "crowded"
    (folder / "inner").mkdir(parents=True)
    for number in range(20_000):
        (folder / "inner" / f"{number}.txt").touch()
    begun = time.monotonic()
    said = attempt(scene.client, "load_model", model=str(folder))
    assert time.monotonic() - begun < 2
    return said


FAULTS = [
    Fault(
        f"{name} to a worker that loads",
        killed_while_loading(name),
        rf"worker_lost: the process that held tiny-gpt2 was killed by {name}",
        slow=True,
    )
    for name in ("SIGKILL", "SIGTERM")
]
FAULTS += [
    Fault("the pool is full", pool_full, r"limit_exceeded: 2 models are loaded, and this server allows 2", slow=True),
    Fault("a truncated safetensors file", truncated, r"unknown_model: ", slow=True),
    Fault("a model's folder that vanishes", vanished, r"unknown_model: there is no file or folder", slow=True),
    Fault("the handle of an unloaded model", unloaded_handle, r"stale_handle: 'tiny-gpt2' is gone", slow=True),
    Fault("a model unloaded in mid-call", unloaded_in_mid_call, r"worker_lost: tiny-llama is gone", slow=True),
    Fault(
        "a load that is stopped (SIGSTOP) and unloaded",
        stuck_load,
        r"cancelled: the load of tiny-gpt2 was ended: it was unloaded",
        settings={"batch_tokens": 1, "hang_timeout": 6, "reply_within": 600},
        slow=True,
    ),
    Fault("a folder of 20,000 files as a model", crowded_folder, r"limit_exceeded: .* holds more than 10000 files"),
]
