"""Checks a model's folder before anything in it is loaded, since it may come from a stranger.

Imports no torch, so that the server can refuse a folder without starting a worker. Only safetensors and GGUF weights
are read: a pickle can run code when it is opened.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nnterp_mcp.errors import Forbidden, UnknownModel, Unsupported
from nnterp_mcp.formatting import size
from nnterp_mcp.request.arguments import shown

_SAFE = (".safetensors", ".safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONVERT = "Only safetensors and GGUF are read: convert it with transformers' save_pretrained first."
_AGAIN = "Download it again, or give a folder that save_pretrained wrote."
_DECODERS = "Load a decoder-only language model, such as a GPT-2, Llama, Qwen, Gemma or Mistral."

_CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
)
_LARGEST = dict.fromkeys((*_CONFIGURATIONS, ".jinja", ".py"), 4_000_000) | {
    ".index.json": 32_000_000,
    ".json": 256_000_000,
    ".txt": 256_000_000,
    ".model": 256_000_000,
    ".tiktoken": 256_000_000,
}
"""The largest size in bytes by suffix: many times that of published files."""
_DEEPEST = 100
_CHEAP_HEADER = 4_000_000
"""Bytes of a safetensors header that is parsed quickly: a longer one is checked by the worker that loads it."""
_MOST_DIMENSIONS = 64
_LARGEST_COUNT = 100_000
_COUNT = re.compile(r"(?:^|_)(?:layer|block|depth|stage|expert|head|group|label|codebook|loop|iteration)s?$")


def find_checkpoint(path: Path) -> tuple[Path, str | None]:
    """The model's folder for a path, and the GGUF file in it, if the weights are in one.

    Raises:
        UnknownModel: It is no model.
        Unsupported: It is an adapter, which changes another model, or has an encoder.
        Forbidden: Its weights are there as pickle only.
    """
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnknownModel(
                f"{path} is no model: files are read when they are .gguf", "Give a folder or a .gguf file."
            )
        return path.parent, path.name
    names = _names(path)
    _require_regular(str(path), path, names)
    if "config.json" in names:
        refuse_encoder(str(path), _mapping(_json(str(path), path / "config.json")))
        require_safetensors(str(path), names)
        return path, None
    _refuse_adapter(str(path), path)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return path, ggufs[0]
    raise _no_model(path, names, ggufs)


def _no_model(path: Path, names: Sequence[str], ggufs: Sequence[str]) -> UnknownModel:
    if ggufs:
        some = _some([shown(name) for name in ggufs])
        return UnknownModel(f"the folder {path} holds {len(ggufs)} GGUF files: {some}", "Give the path of one of them.")
    within = [name for name in names if (path / name / "config.json").is_file()]
    return UnknownModel(
        f"the folder {path} holds no model: it has no config.json",
        f"Give one of the folders in it: {_some([shown(name) for name in within])}."
        if within
        else "Give a folder that save_pretrained wrote, or a .gguf file.",
    )


def require_safetensors(origin: str, files: Sequence[str]) -> None:
    """Refuses a model without weights that can be read, by the names of its files.

    Raises:
        Forbidden: Its weights are there as pickle only.
        UnknownModel: It holds no weights.
    """
    if any(file.endswith(".safetensors") for file in files):
        return
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if pickles:
        raise Forbidden(f"{origin} has its weights only as pickle ({pickles[0]}), which can run code", _CONVERT)
    raise UnknownModel(f"{origin} holds no weights: there is no .safetensors file", "Give a complete model.")


def require_readable(origin: str, folder: Path, gguf: str | None = None) -> None:
    """Refuses files that cannot be read, that refer to weights outside the folder, or of other models than decoders.

    Args:
        origin: Where the model came from, in words.
        folder: The folder that holds its files.
        gguf: The GGUF file in it, when the weights are in one.

    Raises:
        UnknownModel: A file is not regular, too large, or not in the format of its name.
        Forbidden: A file refers to weights of another format or in another folder, which transformers would load.
        Unsupported: It is an adapter, or has an encoder.
    """
    if gguf is not None:
        _require_regular(origin, folder, [gguf, *_CONFIGURATIONS])
        _require_gguf(folder / gguf)
        return
    _require_regular(origin, folder, _names(folder))
    _refuse_adapter(origin, folder)
    config, *_ = [_require_shallow(origin, folder / name) for name in _CONFIGURATIONS]
    if not isinstance(config, dict):
        raise UnknownModel(f"the config.json of {origin} is no JSON object, or not there", _AGAIN)
    refuse_encoder(origin, config)
    _require_countable(origin, config)
    _require_own_weights(origin, folder, config)
    for file in weight_files(folder):
        if file.exists() and _header_bytes(file) <= _CHEAP_HEADER:
            count_numbers(file)


def _header_bytes(file: Path) -> int:
    """The length of a safetensors header; 0 if it exceeds the file, which parsing then refuses."""
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
    return length if length <= file.stat().st_size else 0


def refuse_encoder(origin: str, config: Mapping[str, Any]) -> None:
    """Refuses an encoder with a decoder, by its configuration.

    Raises:
        Unsupported: It is one.
    """
    if config.get("is_encoder_decoder") is True:
        raise Unsupported(
            f"{origin} is an encoder and a decoder (model_type {shown(config.get('model_type'))}): here a model reads "
            "one text, and continues it",
            _DECODERS,
        )


def _require_regular(origin: str, folder: Path, names: Iterable[str]) -> None:
    """Refuses files that are not regular, such as pipes, which never end, or too large to read."""
    templates = "additional_chat_templates"
    for name in [*names, *(f"{templates}/{name}" for name in _names(folder / templates))]:
        try:
            found = (folder / name).stat()
        except OSError:  # a link to nothing: who needs it will say so
            continue
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise UnknownModel(f"{shown(name)} of {origin} is no regular file", _AGAIN)
        largest = next((most for ending, most in _LARGEST.items() if name.endswith(ending)), math.inf)
        if found.st_size > largest:
            raise UnknownModel(
                f"{shown(name)} of {origin} has {size(found.st_size)}, and at most {size(largest)} are read", _AGAIN
            )


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 - names only


def _require_gguf(file: Path) -> None:
    with _named(file, "GGUF"), file.open("rb") as source:
        if source.read(4) != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")


def _refuse_adapter(origin: str, folder: Path) -> None:
    if not (folder / "adapter_config.json").exists():
        return
    card = _mapping(_require_shallow(origin, folder / "adapter_config.json"))
    kind, base = str(card.get("peft_type")), card.get("base_model_name_or_path")
    raise Unsupported(
        f"{origin} is an adapter{f' ({kind})' if kind.isalnum() else ''} of "
        f"{f'the base model {shown(base)}' if base else 'another model'}, and no model by itself",
        "Load the base model. For the adapted one, merge the adapter into it first (PEFT's merge_and_unload, then "
        "save_pretrained), and load what that gives.",
    )


def weight_files(folder: Path) -> list[Path]:
    """The weights that transformers reads: the file named by the configuration, else the usual file, else the index's
    shards.
    """
    named = _mapping(_json("", folder / "config.json")).get("transformers_weights")
    names = [str(named)] if named else ["model.safetensors", "model.safetensors.index.json"]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [found] if found else []
    shards = _mapping(_mapping(_json("", found)).get("weight_map"))
    return [folder / name for name in sorted(set(map(str, shards.values())))]


def count_numbers(file: Path) -> int:
    """The count of numbers in a safetensors file, by its header.

    Raises:
        UnknownModel: The file is cut short, or not what its name says.
    """
    with _named(file), safe_open(file, framework="numpy") as source:
        shapes = [source.get_slice(name).get_shape() for name in source.keys()]  # noqa: SIM118 - no mapping
        if any(len(shape) > _MOST_DIMENSIONS for shape in shapes):
            raise ValueError(f"a tensor has more than {_MOST_DIMENSIONS} dimensions")
        return sum(map(math.prod, shapes))


@contextmanager
def _named(file: Path, kind: str = "safetensors") -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise UnknownModel(
            f"{file} is no {kind} file ({error})", "Download it again; with Git LFS, fetch the files themselves."
        ) from error


def _require_own_weights(origin: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses references to other files than safetensors in the same folder: transformers follows them."""
    for index in sorted(folder.glob("*.index.json")):
        for name in sorted(set(map(str, _mapping(_mapping(_json(origin, index)).get("weight_map")).values()))):
            _require_own_file(origin, index.name, name, _SAFE[:1])
    named = config.get("transformers_weights")
    if named is not None:
        _require_own_file(origin, "config.json", str(named), _SAFE)


def _require_own_file(origin: str, source: str, name: str, endings: tuple[str, ...]) -> None:
    if not name.endswith(endings):
        raise Forbidden(f"{source} of {origin} names {shown(name)}, which is no safetensors file", _CONVERT)
    if "/" in name or "\\" in name:
        raise Forbidden(f"{source} of {origin} names {shown(name)}, which lies in another folder", _CONVERT)


def _require_countable(origin: str, config: Mapping[str, Any]) -> None:
    """Refuses absurd counts, over which transformers would loop while it reads the configuration."""
    for name, value in _entries(config):
        if isinstance(value, int) and value > _LARGEST_COUNT and _COUNT.search(name):
            raise UnknownModel(
                f"config.json of {origin} asks for {name} {value}, and at most {_LARGEST_COUNT} are built",
                "Give the configuration that belongs to the weights.",
            )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _require_shallow(origin: str, file: Path) -> Any:
    """A configuration's content, None if there is none.

    Raises:
        UnknownModel: It is nested too deeply for the libraries that parse it.
    """
    found = _json(origin, file)
    level = [found]
    for _ in range(_DEEPEST):
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return found
    raise _too_deep(origin, file)


def _inner(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _json(origin: str, file: Path) -> Any:
    try:
        return json.loads(file.read_bytes()) if file.is_file() else None
    except RecursionError:
        raise _too_deep(origin, file) from None
    except (OSError, ValueError):  # what is wrong with it, whoever needs it will say
        return None


def _too_deep(origin: str, file: Path) -> UnknownModel:
    return UnknownModel(f"{file.name} of {origin} is nested more than {_DEEPEST} deep, and cannot be read", _AGAIN)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
