"""Finds the dictionaries in a folder, whichever of the published layouts it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.library_layouts import from_dictionary_learning, from_saelens, from_sparsify
from nnterp_mcp.experiments.features.published import Published
from nnterp_mcp.experiments.features.scope_layouts import (
    from_gemma_scope,
    from_gemma_scope_2,
    from_llama_scope,
    from_qwen_scope,
)
from nnterp_mcp.experiments.features.transcoder_sets import from_circuit_tracer, from_cross_layer

_DEPTH = 4
"""Folders below the one that is named in which dictionaries are looked for."""

_MOST = 512
"""Dictionaries below one folder, at most."""

_MARKS: dict[str, Callable[[Path, str], Iterable[Published]]] = {
    r"sae_weights\.safetensors": lambda path, source: [from_saelens(path.parent)],
    r"sae\.safetensors": lambda path, source: [from_sparsify(path.parent)],
    r"ae\.pt": lambda path, source: [from_dictionary_learning(path.parent)],
    r"params\.npz": lambda path, source: [from_gemma_scope(path.parent, source)],
    r"params\.safetensors": lambda path, source: [from_gemma_scope_2(path.parent, source)],
    r"hyperparams\.json": lambda path, source: [from_llama_scope(path.parent)],
    r"layer\d+\.sae\.pt": lambda path, source: [from_qwen_scope(path, source)],
    r"layer_\d+\.safetensors": lambda path, source: from_circuit_tracer(path.parent) if _is_first(path) else (),
    r"W_enc_0\.safetensors": lambda path, source: from_cross_layer(path.parent),
}
"""A file by which each layout is known."""

KNOWN_FILES = (
    "cfg.json with sae_weights.safetensors (SAELens) or sae.safetensors (sparsify), params.npz or params.safetensors "
    "(Gemma Scope), hyperparams.json (Llama Scope), layerN.sae.pt (Qwen-Scope), ae.pt (dictionary_learning), "
    "layer_N.safetensors or W_enc_N.safetensors (circuit-tracer)"
)


def find_dictionaries(folder: Path, source: str) -> list[Published]:
    """The dictionaries in a folder and below, by layer; their tensors are not read yet.

    Args:
        folder: The folder.
        source: The whole path or address, parts of which say what some layouts leave out.

    Raises:
        InvalidRequest: There are none, or several of one layer.
    """
    found = [one for path in _files(folder, _DEPTH) for one in _published(path, folder, source)]
    if not found:
        raise InvalidRequest(f"{source} has no dictionary that can be read: neither {KNOWN_FILES}.")
    by_layer: dict[int | None, Published] = {}
    for one in found:
        if one.layer in by_layer:
            raise InvalidRequest(
                f"{source} has several dictionaries of layer {one.layer}: {by_layer[one.layer].name} and {one.name}.",
                "Name the folder of one of them.",
            )
        by_layer[one.layer] = one
    return sorted(found, key=lambda one: -1 if one.layer is None else one.layer)


def _published(path: Path, folder: Path, source: str) -> Iterable[Published]:
    inner = path.parent.relative_to(folder).as_posix()
    for pattern, read in _MARKS.items():
        if re.fullmatch(pattern, path.name):
            found = read(path, source if inner == "." else f"{source}/{inner}")
            return [replace(one, folder=path.parent) for one in found]
    return ()


def _is_first(path: Path) -> bool:
    """True for one file of a set, of which some layers alone may have been downloaded."""
    return path.name == min(other.name for other in path.parent.glob("layer_*.safetensors"))


def _files(folder: Path, depth: int) -> list[Path]:
    entries = sorted(
        folder.iterdir(),
        key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)],
    )
    files = [path for path in entries if path.is_file()]
    if depth > 1 and len(files) < _MOST:
        files += [file for path in entries if path.is_dir() for file in _files(path, depth - 1)]
    return files
