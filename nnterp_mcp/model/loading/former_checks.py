"""Remembers what was found about a model when it was checked, so that a load of the same files need not run it.

A record counts for the very same model alone. Its name is a hash of all that the findings depend on: the files' sizes
and times, the loaded model's configuration, modules, shapes, dtypes, devices and a sample of its weights, its
tokenizer, the modelling code as it is in memory, and the versions of the libraries and of this package's code.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import platform
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from nnterp_mcp.model.loading.fingerprint import fingerprint
from nnterp_mcp.model.loading.verdicts import Check
from nnterp_mcp.model.structure.anatomy import Anatomy
from nnterp_mcp.model.structure.anatomy_record import NoRecord, read_anatomy, write_anatomy

_MOST = 200
"""Records in the folder; the oldest make room."""

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = ("torch", "transformers", "nnsight", "tokenizers")


class CheckedModel(Protocol):
    """A model that was checked."""

    @property
    def module(self) -> PreTrainedModel:
        """The Hugging Face model."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Its modules and layers, as they were resolved."""
        ...

    @property
    def checks(self) -> list[Check]:
        """The outcome of each check."""
        ...

    @property
    def refusals(self) -> dict[str, str]:
        """The capabilities that are refused, each with its reason."""
        ...

    @property
    def padding_side(self) -> str:
        """The side on which text is padded."""
        ...


@dataclass(frozen=True)
class Findings:
    """Findings of a model's first passes and checks.

    Attributes:
        anatomy: Its modules and layers.
        checks: The outcome of each check.
        refusals: The capabilities that are refused, each with its reason.
        padding_side: The side on which text is padded.
    """

    anatomy: Anatomy
    checks: list[Check]
    refusals: dict[str, str]
    padding_side: Literal["left", "right"]


class FormerChecks:
    """The findings of former loads of some files.

    Args:
        folder: The folder of the model's files, which are about to be read.
        cache: The folder for what can be made anew.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self._folder = folder
        self._kept = cache / "checks"
        self._files = _states(folder)
        self._record: Path | None = None
        self._found: Findings | None = None

    def recall(self, model: PreTrainedModel, tokenizer: Any) -> Findings | None:
        """The findings of an earlier load of this model; None if there was none or anything has changed since.

        Args:
            model: The model as it was read.
            tokenizer: Its tokenizer.
        """
        if self._record is None:
            described = [self._files, *_facts(model, tokenizer)]
            name = hashlib.sha256(json.dumps(described, default=repr).encode()).hexdigest()
            self._record = self._kept / f"{name[:32]}.json"
            self._found = _read(self._record, model)
        return self._found

    def keep(self, model: CheckedModel) -> None:
        """Remembers what was found about a model that `recall` did not know, unless its files changed meanwhile."""
        if self._record is None or self._found is not None or _states(self._folder) != self._files:
            return
        with contextlib.suppress(NoRecord, OSError):
            written = {
                "anatomy": write_anatomy(model.anatomy),
                "checks": [asdict(check) for check in model.checks],
                "refusals": model.refusals,
                "padding_side": model.padding_side,
            }
            _write(self._record, json.dumps(written))

    @property
    def trials(self) -> Path | None:
        """Where trials of this model are recorded; None where it is not the one that the files hold now."""
        if self._record is None or _states(self._folder) != self._files:
            return None
        return self._record.with_suffix(".trials.json")


def _read(record: Path, model: PreTrainedModel) -> Findings | None:
    try:
        written = json.loads(record.read_text(encoding="utf-8"))
        record.touch()
        checks = [Check(**check) for check in written["checks"]]
        anatomy = read_anatomy(written["anatomy"], model)
        return Findings(anatomy, checks, written["refusals"], written["padding_side"])
    except (OSError, ValueError, KeyError, TypeError, NoRecord):
        return None


def _write(record: Path, text: str) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_name(f".{uuid.uuid4().hex}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(record)
    kept = sorted(record.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for old in kept[:-_MOST]:
        old.unlink(missing_ok=True)


def _states(folder: Path) -> list[tuple[str | int, ...]]:
    """Every file of a folder with its size, its number and its times, which any change of it changes."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [(name, at.st_size, at.st_ino, at.st_mtime_ns, at.st_ctime_ns) for name, at in found]


def _facts(model: PreTrainedModel, tokenizer: Any) -> Iterator[Any]:
    """All that findings depend on besides the files."""
    yield from (platform.machine(), sys.version, _versions(), _own_code())
    yield from (torch.backends.cpu.get_cpu_capability(), torch.are_deterministic_algorithms_enabled())
    yield from (len(tokenizer), tokenizer.pad_token_id, tokenizer.padding_side)
    yield (vars(model.config), vars(model.config.get_text_config(decoder=True)), getattr(model, "hf_device_map", None))
    yield [(path, type(module).__qualname__, "forward" in vars(module)) for path, module in model.named_modules()]
    tensors = (*model.named_parameters(), *model.named_buffers())
    yield [(name, tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) for name, tensor in tensors]
    yield from (fingerprint(model), _modelling_code(model))


@cache
def _versions() -> list[str]:
    return [version(name) for name in _LIBRARIES]


@cache
def _own_code() -> list[tuple[str, int, int]]:
    found = ((path, path.stat()) for path in sorted(_PACKAGE.rglob("*.py")))
    return [(path.name, at.st_size, at.st_mtime_ns) for path, at in found]


def _modelling_code(model: PreTrainedModel) -> str:
    """A hash of the code of a model's modules, and of the functions next to them, as they are in memory."""
    digest = hashlib.sha256()
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
        _hash_code(digest, kind.forward)
    for name in sorted({type(module).__module__ for module in model.modules()}):
        for function in vars(sys.modules[name]).values():
            _hash_code(digest, function)
    return digest.hexdigest()


def _hash_code(digest: Any, function: Any) -> None:
    for layer in (function, inspect.unwrap(function) if callable(function) else None):
        code = getattr(layer, "__code__", None)
        if code is not None:
            constants = [_in_order(constant) for constant in code.co_consts if not inspect.iscode(constant)]
            digest.update(f"{code.co_filename} {code.co_names} {constants}".encode() + code.co_code)


def _in_order(constant: Any) -> str:
    """A constant in words that are the same in each process, which orders sets as it likes."""
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)  # pyright: ignore
