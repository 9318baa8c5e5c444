"""Named tensors in files, read one by one and without running anything: safetensors, npz without pickles, pt."""

from __future__ import annotations

import json
import pickle
import pickletools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file; each is read when it is asked for, in float32.

    Attributes:
        path: The file.
        readers: What reads a tensor, by its name.
    """

    path: Path
    readers: Mapping[str, Callable[[], Tensor]]

    def __contains__(self, name: str) -> bool:
        return name in self.readers

    def read(self, *names: str) -> Tensor:
        """A tensor under the first of several names that the file has.

        Raises:
            InvalidRequest: It has none of them, or the tensor holds whole numbers or one that is not finite.
        """
        found = next((name for name in names if name in self.readers), None)
        if found is None:
            there = ", ".join(sorted(self.readers)[:12]) or "nothing"
            raise InvalidRequest(f"{self.path.name} has no tensor {' or '.join(names)}: it has {there}.")
        stored = self.readers[found]()
        if stored.ndim and not stored.is_floating_point():
            kind = str(stored.dtype).removeprefix("torch.")
            raise InvalidRequest(f"the tensor {found} of {self.path.name} holds {kind}, not floating-point numbers.")
        tensor = stored.float()
        if not tensor.isfinite().all():
            raise InvalidRequest(f"the tensor {found} of {self.path.name} holds numbers that are not finite.")
        return tensor

    def find(self, *names: str) -> Tensor | None:
        """The same; None where the file has none of them."""
        return self.read(*names) if any(name in self.readers for name in names) else None


def open_tensors(path: Path) -> TensorFile:
    """Opens a file of tensors.

    Raises:
        Forbidden: It holds a pickle of something else than tensors, which could run code.
        InvalidRequest: It is damaged, or of another kind.
    """
    opener = {".safetensors": _open_safetensors, ".npz": _open_npz, ".pt": _open_pt}.get(path.suffix)
    if opener is None:
        raise InvalidRequest(f"{path.name} is no .safetensors, .npz or .pt file.")
    try:
        return TensorFile(path, opener(path))
    except NnterpError:  # some of ours are errors of the system too
        raise
    except (OSError, SafetensorError, BadZipFile, RuntimeError, ValueError, EOFError) as error:
        raise InvalidRequest(f"{path.name} is damaged: {_first_line(error)}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InvalidRequest: It holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path.name} cannot be read: {_first_line(error)}.") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path.name} holds no JSON object.")
    return found  # pyright: ignore[reportUnknownVariableType]


def _open_safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    file: Any = safe_open(path, framework="pt")
    return {name: lambda name=name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _open_npz(path: Path) -> dict[str, Callable[[], Tensor]]:
    arrays = np.load(path, allow_pickle=False)

    def read(name: str) -> Tensor:
        try:
            return torch.from_numpy(arrays[name])
        except ValueError as error:
            raise Forbidden(f"the array {name} of {path.name} is a pickle, which could run code") from error

    return {name: lambda name=name: read(name) for name in arrays.files}


def _open_pt(path: Path) -> dict[str, Callable[[], Tensor]]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error) or not _is_pickle(path):
            raise InvalidRequest(f"{path.name} is damaged, or no file of torch.save.") from error
        raise Forbidden(
            f"{path.name} is a pickle of more than tensors, which could run code", "Convert it to safetensors."
        ) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path.name} holds no tensors by name.")
    named: dict[Any, Any] = found
    return {str(name): lambda value=value: value for name, value in named.items() if isinstance(value, Tensor)}


def _is_pickle(path: Path) -> bool:
    """The file has a whole pickle in it, alone or in an archive as torch.save writes it."""
    if is_zipfile(path):
        return True
    try:
        with path.open("rb") as file:
            deque(pickletools.genops(file), maxlen=0)  # reads the operations, and runs none
    except (ValueError, pickle.UnpicklingError):
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
