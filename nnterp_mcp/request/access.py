"""Confines files and models that callers name to the folders that the server allows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from nnterp_mcp.errors import Forbidden, InvalidRequest, LimitExceeded, UnknownModel
from nnterp_mcp.request.adapter_folder import read_adapter_config, split_hub, split_scale, with_scale
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.model_folder import find_checkpoint, require_readable

_MOST_FILES = 10_000
"""Files of a model's folder and its subfolders, at most."""

_DEPTH = 5
"""Folders below the one that is named in which dictionaries are looked for."""

_LOADED = "models are loaded"
_ALLOW = "Whoever starts the server allows a folder with --folder."


def allowed_file(name: str, folders: Sequence[Path]) -> Path:
    """The file behind a name.

    Args:
        name: A path; links and `..` are resolved before it is judged, a relative one is tried in each folder.
        folders: The allowed folders.

    Raises:
        Forbidden: It lies outside of the allowed folders, whether it exists or not.
        InvalidRequest: There is no such file.
    """
    roots = _resolved(folders)
    found = next((path for path in _inside(name, roots, "files are read") if path.is_file()), None)
    if found is None:
        raise InvalidRequest(f"there is no file {shown(name)} in {_listed(roots)}.")
    return found


def admit_model(name: str, patterns: Sequence[str], folders: Sequence[Path]) -> str:
    """Checks that a server may load a model; returns its name, or its resolved path.

    Args:
        name: The `model` argument of `load_model`.
        patterns: Glob patterns of allowed names and resolved paths.
        folders: The folders of allowed local models.

    Raises:
        Forbidden: No pattern allows it, or it lies outside of the folders, or one of its files does.
        LimitExceeded: The folder holds more files than a model has.
        UnknownModel: There is no such file or folder, or it holds no model that can be read.
        Unsupported: It is an adapter, or has an encoder.
    """
    found = _allowed_model(name, _resolved(folders)) if _is_path(name) else None
    source = name if found is None else str(found)
    _require_allowed(source, patterns)
    if found is not None:
        require_readable(source, *find_checkpoint(found))
    return source


def admit_adapter(name: str, patterns: Sequence[str], folders: Sequence[Path]) -> str:
    """Checks that a server may load an adapter; returns its resolved path or address, with a scale that is not 1.

    Args:
        name: The `adapter` argument of `load_model`.
        patterns: Glob patterns of allowed Hub ids and resolved paths.
        folders: The folders of allowed local models.

    Raises:
        Forbidden: No pattern allows it, it lies outside of the folders, or its weights are a pickle.
        InvalidRequest: Its scale is none.
        UnknownModel: There is no such folder, or it holds no adapter.
        Unsupported: It is no LoRA adapter.
    """
    path, scale = split_scale(name)
    roots, hub = _resolved(folders), split_hub(path)
    if hub is not None and not any(found.is_dir() for found in (_inside(path, roots, _LOADED) if roots else ())):
        _require_allowed(hub[0], patterns)
        return with_scale(path, scale)
    found = _allowed_model(path, roots, "Give the folder that PEFT's save_pretrained wrote, or its id on the Hub.")
    _require_allowed(str(found), patterns)
    if not found.is_dir():
        raise UnknownModel(f"{found} is no folder", "Give the folder that PEFT's save_pretrained wrote.")
    read_adapter_config(found)
    return with_scale(str(found), scale)


def admit_dictionary(name: str, patterns: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """Checks that a server may read a dictionary of features.

    Args:
        name: A folder, or a Hub id with a path below it.
        patterns: Glob patterns of allowed Hub ids and resolved paths.
        folders: The folders of allowed local files; a relative path is tried in each.

    Returns:
        The folder; None for an address on the Hub.

    Raises:
        Forbidden: No pattern allows it, or it lies outside of the folders, or a file in it does.
        InvalidRequest: There is no such folder.
        LimitExceeded: The folder holds more files than a model has.
    """
    roots = _resolved(folders)
    local = name.startswith((".", "~", "/")) or name[1:2] == ":" or "\\" in name or "\0" in name
    below = _inside(name, roots, "dictionaries are read") if local or roots else []
    found = next((path for path in below if path.is_dir()), None)
    if found is None and local:
        raise InvalidRequest(f"there is no folder {shown(name)} in {_listed(roots)}.")
    source = "/".join(name.split("/")[:2]) if found is None else str(found)
    _require_allowed(source, patterns)
    if found is not None:
        _require_inside(found, name, roots, _DEPTH)
    return found


def admit_lens(name: str, patterns: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """Checks that a server may read a fitted lens.

    Args:
        name: A file, or a Hub id with a path below it; of a space with `spaces/` before it.
        patterns: Glob patterns of allowed Hub ids.
        folders: The folders of allowed local files; a relative path is tried in each.

    Returns:
        The file; None for an address on the Hub.

    Raises:
        Forbidden: No pattern allows it, or it lies outside of the folders.
        InvalidRequest: There is no such file.
    """
    local = name.startswith((".", "~", "/")) or "/" not in name or name[1:2] == ":" or "\\" in name or "\0" in name
    roots = _resolved(folders)
    below = _inside(name, roots, "files are read") if local or roots else []
    found = next((path for path in below if path.is_file()), None)
    if found is None and local:
        raise InvalidRequest(f"there is no file {shown(name)} in {_listed(roots)}.")
    if found is None:
        _require_allowed("/".join(name.removeprefix("spaces/").split("/")[:2]), patterns)
    return found


def _is_path(name: str) -> bool:
    """True for paths; a Hub id has one slash at most."""
    marked = name.startswith((".", "~", "/")) or name[1:2] == ":" or name.endswith(".gguf")
    return marked or "\\" in name or "\0" in name or name.count("/") > 1


def _allowed_model(
    name: str,
    roots: Sequence[Path],
    wanted: str = "Give an existing path, a Hub id, or 'smollm2-135m', which is built in.",
) -> Path:
    found = next((path for path in _inside(name, roots, _LOADED) if path.is_dir() or path.is_file()), None)
    if found is None:
        raise UnknownModel(f"there is no file or folder {shown(name)}", wanted)
    _require_inside(found, name, roots)
    return found


def _require_allowed(source: str, patterns: Sequence[str]) -> None:
    if not any(fnmatchcase(source, pattern) for pattern in patterns):
        raise Forbidden(
            f"this server does not load {shown(source)}: it allows {', '.join(patterns)}",
            "Whoever starts the server allows more with --allow-model.",
        )


def _require_inside(found: Path, name: str, roots: Sequence[Path], depth: int = 2) -> None:
    """Refuses a folder with a link that leads out of the allowed ones, or with more files than a model has."""
    for count, entry in enumerate(_entries(found, depth) if found.is_dir() else ()):
        if count == _MOST_FILES:
            raise LimitExceeded(
                f"{shown(name)} holds more than {_MOST_FILES} files, and a model fewer", "Name the model's own folder."
            )
        # Only a link leads anywhere else; resolve() would raise on a loop of them.
        if entry.is_symlink() and not _is_inside(Path(os.path.realpath(entry)), roots):
            raise Forbidden(f"{entry.path} is a link that leads outside of {_listed(roots)}", _ALLOW)


def _entries(folder: Path | str, depth: int) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder and its subfolders, as deep as model folders are."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if depth > 1 and entry.is_dir():
                yield from _entries(entry.path, depth - 1)


def _inside(name: str, roots: Sequence[Path], purpose: str) -> list[Path]:
    """The existing paths below the folders that a name resolves to, links and `..` included."""
    if "\0" in name or name.startswith(("//", "\\\\")):
        raise Forbidden(f"{shown(name)} is no path of this machine: it holds a NUL byte, or names a network share")
    try:
        path = Path(name).expanduser()
        inside = [found for root in roots if _is_inside(found := (root / path).resolve(), roots)]
        existing = [found for found in inside if found.exists()]
    except (OSError, RuntimeError, ValueError):  # longer than a path can be, a loop of links, the home of nobody
        raise InvalidRequest(f"{shown(name)} is no path that can be followed.") from None
    if not inside:
        raise Forbidden(
            f"{shown(name)} lies outside of the folders from which {purpose} ({_listed(roots) or 'none'})", _ALLOW
        )
    return existing


def _is_inside(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _resolved(folders: Sequence[Path]) -> list[Path]:
    return [folder.expanduser().resolve() for folder in folders]


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(map(str, roots))
