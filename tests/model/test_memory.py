from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from nnterp_mcp.errors import UnknownModel
from nnterp_mcp.model import memory
from nnterp_mcp.verification.tiny import tiny_model
from tests.model.families import fresh

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca\n"
)


def header(shape: object) -> bytes:
    written = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(written)) + written


def test_need_is_known_before_the_weights_are_read(tiny: Callable[..., Path]) -> None:
    folder = tiny("llama")
    count = AutoModelForCausalLM.from_pretrained(folder).num_parameters()

    assert memory.of_weights(folder, torch.float32) == 4 * count
    assert memory.of_weights(folder, torch.bfloat16) == 2 * count
    assert memory.of_weights(folder, torch.float32, "8bit") == count
    assert memory.of_weights(folder, torch.float32, "4bit") == int(4.5 / 8 * count)
    assert memory.of_weights(folder.parent, torch.float32) == 0


@pytest.mark.parametrize("layout", ["one file", "shards", "named file", "named index"])
def test_copies_beside_the_weights_are_not_counted(layout: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="200KB" if layout in ("shards", "named index") else "5GB")
    if layout == "named file":
        (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
        name_weights(tmp_path, "other.safetensors")
    if layout == "named index":
        (tmp_path / "model.safetensors.index.json").rename(tmp_path / "other.safetensors.index.json")
        name_weights(tmp_path, "other.safetensors.index.json")
    assert (len(list(tmp_path.glob("*-of-*.safetensors"))) > 1) == (layout in ("shards", "named index"))
    save_file({"tok_embeddings.weight": torch.zeros(1000, 50)}, tmp_path / "consolidated.safetensors")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)

    assert memory.of_weights(tmp_path, torch.float32) == 4 * read.num_parameters() == 4 * model.num_parameters()


def name_weights(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 5}', '{"weight_map": {"a": "gone.safetensors"}}'])
def test_an_index_that_names_nothing_needs_nothing(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)

    assert memory.of_weights(tmp_path, torch.float32) == 0


def test_tied_weights_are_counted_once() -> None:
    wrapped = fresh("gpt2")
    model: Any = wrapped.module
    stored = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}

    assert model.lm_head.weight is model.transformer.wte.weight
    assert wrapped.held_bytes == sum(stored.values())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (POINTER.encode(), "header too large"),
        (b"", "header too small"),
        (struct.pack("<Q", 4) + b"what", "invalid JSON in header"),
        (header([10**9] * 200_000), "overflow computing buffer size"),
        (header(None), "invalid type: null"),
    ],
)
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)

    with pytest.raises(UnknownModel) as caught:
        memory.of_weights(tmp_path, torch.float32)
    assert caught.value.message.startswith(f"{file} is no safetensors file (")
    assert reason in caught.value.message


def test_free_memory_is_the_machines() -> None:
    assert 0 < memory.free(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.parametrize(("model_type", "heads", "widest"), [("gemma4_text", 2, 32), ("dots3_note_text", 4, 24)])
def test_layers_of_different_widths_count_as_the_widest(model_type: str, heads: int, widest: int) -> None:
    model = fresh(model_type, check_renaming=False)
    assert memory.of_cached_token(model) == 2 * model.num_layers * heads * widest * 4
