"""Files that no good model or prompt set has, and a client that asks without a pause."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file, save_file

from tests.faults.scene import SHARED, Fault, Scene, attempt, seen
from tests.serving import text

_FLOOD = 400
"""Requests in a minute that one server takes of a client."""


def changed_model(change: Callable[[Path], None], within: float) -> Callable[[Scene], str]:
    """A load of a model's folder in which a file was changed, and how long the refusal may take."""

    def inject(scene: Scene) -> str:
        folder = shutil.copytree(scene.model("gpt2"), scene.folder / f"changed-{time.monotonic_ns()}")
        change(folder)
        begun = time.monotonic()
        said = attempt(scene.client, "load_model", model=str(folder))
        assert time.monotonic() - begun < within, f"{time.monotonic() - begun:.1f} s: {said}"
        return said

    return inject


def _make_fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _ask_for_layers(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_layer": 10**9}))


def _give_dimensions(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 200_000, "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def _spoil(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
    weights[name][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})


def prompt_file(name: str, content: Callable[[], str]) -> Callable[[Scene], str]:
    """A set of prompts from a file, refused within seconds."""

    def inject(scene: Scene) -> str:
        file = scene.folder / "data" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content())
        begun = time.monotonic()
        said = attempt(scene.client, "run_prompts", prompts={"path": str(file)}, model="tiny-llama")
        assert time.monotonic() - begun < 5, said
        return said

    return inject


def panicking_tokenizer(scene: Scene) -> str:
    """A normalizer over which the tokenizers library panics where a text begins with "z"."""
    folder = shutil.copytree(scene.model("gpt2"), scene.folder / "panicking")
    file = folder / "tokenizer.json"
    normalizer = {"type": "Replace", "pattern": {"Regex": "(?=z)"}, "content": "x"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))
    loaded = scene.client.call("load_model", model=str(folder))
    assert not loaded.is_error, text(loaded)
    said = seen(scene.client.begin("tokenize", prompts="z", model="panicking"))
    assert not scene.client.call("tokenize", prompts="a", model="panicking").is_error
    assert not scene.client.call("unload_model", model="panicking").is_error
    return said


def flood(scene: Scene) -> str:
    """More requests than a minute allows, from another address than the other client's."""
    address = urlsplit(scene.http.address)
    for _ in range(_FLOOD + 1):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, source_address=("127.0.0.2", 0))
        connection.request("GET", "/health")
        reply = connection.getresponse()
        body = reply.read().decode()
        connection.close()
    return f"{reply.status} {body}"


FAULTS = [
    Fault(
        "a FIFO as config.json", changed_model(_make_fifo, 2), r"unknown_model: 'config.json' of .* is no regular file"
    ),
    Fault("a configuration of 10^9 layers", changed_model(_ask_for_layers, 2), r"unknown_model: .*1000000000"),
    Fault("a tensor of 200,000 dimensions", changed_model(_give_dimensions, 2), r"unknown_model: .*64 dimensions"),
    Fault("a weight that is NaN", changed_model(_spoil, 60), r"unknown_model: .*layer 1", slow=True),
    Fault(
        "a prompt file of a million lines",
        prompt_file("many.jsonl", lambda: '{"prompt": "a"}\n' * 1_000_000),
        r"limit_exceeded: ",
    ),
    Fault(
        "a prompt file nested 100,000 deep",
        prompt_file("deep.jsonl", lambda: "[" * 100_000 + "]" * 100_000),
        r"invalid_request: ",
    ),
    Fault(
        "a text over which the tokenizer panics",
        panicking_tokenizer,
        r"invalid_request: the tokenizer cannot read 'z' \(PanicException\)",
        slow=True,
    ),
    Fault(
        "more requests than a minute allows",
        flood,
        rf"429 .*more than {_FLOOD} requests in a minute .*Try again in \d+ s",
        settings=SHARED | {"max_requests_per_minute": _FLOOD},
        slow=True,
    ),
]
