"""What a client gets for each kind of bad input, word for word, and that the next call works."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from mcp.shared.exceptions import MCPError
from safetensors.torch import load_file, save_file
from syrupy.assertion import SnapshotAssertion
from tokenizers import normalizers

from nnterp_mcp.verification.tiny import tiny_tokenizer
from tests.serving import Caller, stdio, text


@pytest.fixture(scope="module")
def client(tiny: Callable[..., Path]) -> Generator[Caller]:
    """A server with one small model, whose tokenizer drops zero-width spaces."""
    with stdio(max_models=2) as caller:
        folder = tiny("gpt2", seed=3)
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
        tokenizer.save_pretrained(folder)
        assert not caller.call("load_model", model=str(folder)).is_error
        yield caller


@pytest.fixture(scope="module")
def empty() -> Generator[Caller]:
    """A server without a model."""
    with stdio() as caller:
        yield caller


@pytest.fixture
def spoilt(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("llama"), tmp_path / "spoilt"))


def refusal(caller: Caller, tool: str, **arguments: Any) -> str:
    """The text of a refused call; what differs between machines is replaced."""
    result = caller.call(tool, **arguments)
    assert result.is_error, text(result)
    assert result.structured_content is None
    said = re.sub(r"/\S*/(?=[\w.-]+)", "…/", text(result))
    return re.sub(r"transformers \d\S*", "transformers VERSION", said)


def works(caller: Caller) -> bool:
    return not caller.call("tokenize", prompts="still here").is_error


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "empty prompt": ("logit_lens", {"prompts": ""}),
    "one empty prompt of two": ("logit_lens", {"prompts": ["a", ""]}),
    "no prompts": ("logit_lens", {"prompts": []}),
    "prompt over the context": ("logit_lens", {"prompts": "a b c d " * 200}),
    "prompts over the limit": ("logit_lens", {"prompts": ["a"] * 1025}),
    "layer out of range": ("logit_lens", {"prompts": "a", "layers": 40}),
    "layer range out of range": ("logit_lens", {"prompts": "a", "layers": "4:"}),
    "position out of range": ("logit_lens", {"prompts": "a", "positions": -90}),
    "text not in the prompt": ("logit_lens", {"prompts": "a b", "positions": {"text": "France"}}),
    "unknown argument": ("logit_lens", {"prompts": "a", "temperature": 1}),
    "misspelt argument": ("logit_lens", {"prompts": "a", "layer": 1}),
    "missing argument": ("logit_lens", {}),
    "target without a token": ("logit_lens", {"prompts": "a", "targets": {"nothing": "\u200b"}}),
    "empty target": ("logit_lens", {"prompts": "a", "targets": {"nothing": ""}}),
    "prompts of a wrong type": ("logit_lens", {"prompts": 5}),
    "layers of a wrong type": ("logit_lens", {"prompts": "a", "layers": "first"}),
    "positions of a wrong type": ("logit_lens", {"prompts": "a", "positions": 1.5}),
    "targets of a wrong type": ("logit_lens", {"prompts": "a", "targets": ["Paris"]}),
    "top_k of a wrong type": ("logit_lens", {"prompts": "a", "top_k": "many"}),
    "top_k too large": ("logit_lens", {"prompts": "a", "top_k": 21}),
    "chat without a template": ("tokenize", {"prompts": [{"role": "user", "content": "a"}]}),
    "message of a wrong shape": ("tokenize", {"prompts": [{"role": "user", "text": "a"}]}),
    "unknown handle": ("tokenize", {"prompts": "a", "model": "gpt-9"}),
    "unknown handle to unload": ("unload_model", {"model": "gpt-9"}),
    "handle of a wrong type": ("tokenize", {"prompts": "a", "model": 5}),
    "argument where none is": ("session", {"verbose": True}),
    "unknown dtype": ("load_model", {"model": "gpt2", "dtype": "int3"}),
    "no model named": ("load_model", {"model": ""}),
    "a long value": ("load_model", {"model": "gpt2", "dtype": "x" * 10_000}),
    "a long name": ("tokenize", {"prompts": "a", "y" * 10_000: 1}),
}


@pytest.mark.parametrize("kind", CALLS)
def test_call(kind: str, client: Caller, snapshot: SnapshotAssertion) -> None:
    tool, arguments = CALLS[kind]

    assert refusal(client, tool, **arguments) == snapshot
    assert works(client)


@pytest.mark.parametrize("tool", ["logit_lens", "tokenize", "unload_model"])
def test_call_before_a_model_is_loaded(tool: str, empty: Caller) -> None:
    arguments = {} if tool == "unload_model" else {"prompts": "a"}

    assert refusal(empty, tool, **arguments) == (
        'no_model: no model is loaded\nCall load_model first, for instance {"model": "smollm2-135m"}.'
    )
    assert not empty.call("session").is_error


def test_unknown_tool(empty: Caller) -> None:
    with pytest.raises(MCPError) as caught:
        empty.call("logit_lense", prompts="a")
    assert str(caught.value).startswith("Unknown tool: logit_lense. Tools: ")
    assert "logit_lens, " in str(caught.value)
    assert not empty.call("session").is_error


@pytest.mark.slow
def test_loads(client: Caller, spoilt: Path, tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    """Each of these starts a worker, which ends."""
    weights = load_file(spoilt / "model.safetensors")

    def variant(name: str) -> Path:
        return Path(shutil.copytree(spoilt, tmp_path / name))

    pickled, headless, shallow, mute = map(variant, ("pickled", "headless", "shallow", "mute"))
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder, lost in ((headless, "lm_head"), (shallow, "model.layers.2")):
        kept = {name: value for name, value in weights.items() if not name.startswith(lost)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for file in mute.glob("token*"):
        file.unlink()
    (tmp_path / "bare").mkdir()
    requests = {
        "unknown path": {"model": str(tmp_path / "nowhere")},
        "unknown Hub id": {"model": "nobody/nothing"},
        "folder with no model": {"model": str(tmp_path / "bare")},
        "pickle-only weights": {"model": str(pickled)},
        "no head": {"model": str(headless)},
        "a layer missing": {"model": str(shallow)},
        "no tokenizer": {"model": str(mute)},
        "unknown device": {"model": str(spoilt), "device": "cuda:7"},
        "quantization": {"model": str(spoilt), "quantization": "4bit"},
    }
    before = [worker.pid for worker in client.workers()]

    assert {kind: refusal(client, "load_model", **request) for kind, request in requests.items()} == snapshot
    assert works(client)
    assert [worker.pid for worker in client.workers()] == before


def test_too_many_models_and_none_named(client: Caller, tiny: Callable[..., Path]) -> None:
    assert not client.call("load_model", model=str(tiny("llama"))).is_error

    assert refusal(client, "load_model", model="smollm2-135m") == (
        "limit_exceeded: 2 models are loaded, and this server allows 2: tiny-gpt2-seed-3, tiny-llama\n"
        "Call unload_model for one of them first."
    )
    assert refusal(client, "tokenize", prompts="a") == (
        "no_model: 2 models are loaded: tiny-gpt2-seed-3, tiny-llama\nSay which one in the argument 'model'."
    )
    assert not client.call("tokenize", prompts="a", model="tiny-llama").is_error

    assert not client.call("unload_model", model="tiny-llama").is_error
    assert refusal(client, "tokenize", prompts="a", model="tiny-llama") == (
        "stale_handle: 'tiny-llama' is gone: it was unloaded; loaded: tiny-gpt2-seed-3\nCall load_model again."
    )
    assert refusal(client, "unload_model", model="tiny-llama").startswith("stale_handle: ")
    assert works(client)


def test_a_handle_never_stands_for_another_model(client: Caller, tiny: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "tiny-neox"
    shutil.copytree(tiny("gpt_neox"), other)
    shutil.copytree(tiny("gpt_neox"), tmp_path / "elsewhere" / "tiny-neox")

    def load(folder: Path) -> str:
        return client.call("load_model", model=str(folder)).structured_content["model"]

    assert load(other) == "tiny-neox"
    client.call("unload_model", model="tiny-neox")
    assert load(tmp_path / "elsewhere" / "tiny-neox") == "tiny-neox-2"
    assert refusal(client, "tokenize", prompts="a", model="tiny-neox").startswith("stale_handle: 'tiny-neox' is gone")
    client.call("unload_model", model="tiny-neox-2")
    assert json.dumps(client.call("session").structured_content).count("is gone: it was unloaded") >= 2
