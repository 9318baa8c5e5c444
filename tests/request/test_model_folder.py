"""Folders of strangers: what is refused by its files alone, before a worker starts and before anything is built."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BartConfig, T5Config, WhisperConfig

from nnterp_mcp.errors import Forbidden, NnterpError, UnknownModel, Unsupported
from nnterp_mcp.model.loading.locate import locate
from nnterp_mcp.request.access import admit_model

DEEP = 100_000


@pytest.fixture
def copied(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A llama's folder, to be spoilt."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))


def configure(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def pipe(name: str) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        os.mkfifo(folder / name)

    return arrange


def large(name: str, size: int) -> Callable[[Path], None]:
    """A file that takes no room on the disk."""

    def arrange(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return arrange


def written(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def asking(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **entries)


def described(config: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "float32"}))


def with_index(content: str) -> Callable[[Path], object]:
    return written("model.safetensors.index.json", content)


def adapter(folder: Path) -> None:
    """What PEFT's save_pretrained writes."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    card = {"peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M", "r": 8, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(card))


def two_ggufs(folder: Path) -> None:
    (folder / "config.json").unlink()
    for name in ("a-Q4.gguf", "a-Q8.gguf"):
        (folder / name).write_bytes(b"GGUF")


def checkpoints(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    (folder / "config.json").rename(folder / "checkpoint-500" / "config.json")


def header(content: bytes, length: int | None = None) -> Callable[[Path], object]:
    written = struct.pack("<Q", len(content) if length is None else length) + content
    return lambda folder: (folder / "model.safetensors").write_bytes(written)


NESTED = "is nested more than 100 deep, and cannot be read"
REFUSED: dict[str, tuple[Callable[[Path], object], type[NnterpError], str]] = {
    "a pipe for the configuration": (pipe("config.json"), UnknownModel, "'config.json' of FOLDER is no regular file"),
    "a pipe for the tokenizer": (pipe("tokenizer.json"), UnknownModel, "'tokenizer.json' of FOLDER is no regular"),
    "a pipe for the weights": (pipe("model.safetensors"), UnknownModel, "'model.safetensors' of FOLDER is no regular"),
    "a pipe for a template": (pipe("additional_chat_templates/a.jinja"), UnknownModel, "a.jinja' of FOLDER is no reg"),
    "a pipe for an adapter": (pipe("adapter_config.json"), UnknownModel, "'adapter_config.json' of FOLDER is no reg"),
    "a large configuration": (
        large("config.json", 200_000_000),
        UnknownModel,
        "'config.json' of FOLDER has 200 MB, and at most 4 MB are read",
    ),
    "a large tokenizer": (large("tokenizer.json", 10**12), UnknownModel, "has 1 TB, and at most 256 MB are read"),
    "a large template": (large("chat_template.jinja", 10**8), UnknownModel, "and at most 4 MB are read"),
    "a deep configuration": (
        written("config.json", '{"a": ' + "[" * DEEP + "]" * DEEP + "}"),
        UnknownModel,
        f"config.json of FOLDER {NESTED}",
    ),
    "deep objects": (written("config.json", '{"a": ' * 300 + "1" + "}" * 300), UnknownModel, NESTED),
    "a deep tokenizer": (
        written("tokenizer_config.json", "[" * DEEP),
        UnknownModel,
        f"r_config.json of FOLDER {NESTED}",
    ),
    "a deep index": (with_index('{"weight_map": ' + "[" * DEEP), UnknownModel, f"index.json of FOLDER {NESTED}"),
    "a configuration that is none": (
        written("config.json", "[]"),
        UnknownModel,
        "config.json of FOLDER is no JSON",
    ),
    "layers": (
        asking(num_hidden_layers=10**9),
        UnknownModel,
        "config.json of FOLDER asks for num_hidden_layers 1000000000, and at most 100000 are built",
    ),
    "labels": (asking(num_labels=10**9), UnknownModel, "asks for num_labels 1000000000"),
    "layers of a part": (asking(vision_config={"depth": 10**7}), UnknownModel, "asks for depth 10000000"),
    "T5": (
        described(T5Config()),
        Unsupported,
        re.escape("FOLDER is an encoder and a decoder (model_type 't5')"),
    ),
    "BART": (described(BartConfig()), Unsupported, "is an encoder and a decoder"),
    "Whisper": (described(WhisperConfig()), Unsupported, "is an encoder and a decoder"),
    "an adapter": (
        adapter,
        Unsupported,
        re.escape("FOLDER is an adapter (LORA) of the base model 'HuggingFaceTB/SmolLM2-135M', and no model by itself"),
    ),
    "several GGUF files": (two_ggufs, UnknownModel, "FOLDER holds 2 GGUF files: 'a-Q4.gguf', 'a-Q8.gguf'"),
    "a folder of checkpoints": (checkpoints, UnknownModel, "FOLDER holds no model: it has no config.json"),
    "a header that is cut": (header(b"{}", 10**9), UnknownModel, "header too large"),
    "weights elsewhere": (
        with_index('{"weight_map": {"a": "../b.safetensors"}}'),
        Forbidden,
        "names '../b.safetensors', which lies in another folder",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_is_refused_by_its_files_alone(kind: str, copied: Path) -> None:
    arrange, error, said = REFUSED[kind]
    arrange(copied)
    begun = time.monotonic()
    with pytest.raises(error) as by_server:
        admit_model(str(copied), ["*"], [copied.parent])
    with pytest.raises(error) as by_library:
        locate(str(copied), None, copied, False, lambda message: None)

    assert time.monotonic() - begun < 2
    assert re.search(said, by_server.value.message.replace(str(copied), "FOLDER"))
    assert by_library.value.message == by_server.value.message
    assert by_server.value.next_step


def test_the_next_steps_name_what_can_be_loaded(copied: Path) -> None:
    checkpoints(copied)
    with pytest.raises(UnknownModel) as caught:
        admit_model(str(copied), ["*"], [copied.parent])
    assert caught.value.next_step == "Give one of the folders in it: 'checkpoint-500'."

    adapter(copied)
    with pytest.raises(Unsupported) as caught:
        admit_model(str(copied), ["*"], [copied.parent])
    assert caught.value.next_step.startswith("Load the base model. For the adapted one, merge the adapter into it")


def test_gguf_files_are_known_by_their_beginning(copied: Path) -> None:
    for name, content in (("a.gguf", b"PK\3\4"), ("b.gguf", b"")):
        (copied / name).write_bytes(content)
        with pytest.raises(UnknownModel, match=rf"{name} is no GGUF file \(it does not begin with 'GGUF'\)"):
            admit_model(str(copied / name), ["*"], [copied.parent])


def test_what_lies_beside_a_model_is_nobodys_business(copied: Path) -> None:
    large("pytorch_model.bin", 10**12)(copied)
    (copied / "notes.json").symlink_to(copied / "nowhere")
    (copied / "runs").mkdir()
    configure(copied, max_position_embeddings=10**7, rope_theta=10**9, id2label={str(i): "x" for i in range(1000)})

    assert admit_model(str(copied), ["*"], [copied.parent]) == str(copied)
