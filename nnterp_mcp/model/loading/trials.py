"""Trials on a model: made once for each situation, and once for all loads of the same files where there is a record.

Trials find the cheapest computation that is exact on a model, such as how much rows of a batch can share.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Found = TypeVar("Found")

Tried = dict[Hashable, tuple[int, Any]]
"""By situation: the longest prompt that was tried, and what was found exact on it."""

_TRIED: WeakKeyDictionary[nn.Module, dict[str, Tried]] = WeakKeyDictionary()
_RECORDS: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()


def recall(module: nn.Module, kind: str, situation: Hashable, length: int, find: Callable[[], Found]) -> Found:
    """Returns what a model allows in a situation, tried once for prompts up to each length.

    Args:
        module: The model.
        kind: What is tried.
        situation: All that the answer depends on besides the length. One of texts, numbers, tuples and sets is written
            to the model's record.
        length: The tokens of the prompt.
        find: Tries it. Returns what JSON can hold.
    """
    known = _TRIED.setdefault(module, {}).setdefault(kind, {})
    key = _name(situation)
    if key not in known or known[key][0] < length:
        known[key] = length, find()
        _write(module)
    return known[key][1]


def findings(module: nn.Module, kind: str) -> list[Any]:
    """The findings of one kind about a model so far, in any situation."""
    return [found for _, found in _TRIED.get(module, {}).get(kind, {}).values()]


def forget(module: nn.Module) -> None:
    """Lets everything be tried again."""
    _TRIED.pop(module, None)


def record_trials(module: nn.Module, record: Path) -> None:
    """Takes over what was found at former loads of a model, and writes there what is found from now on."""
    _RECORDS[module] = record
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        written: Mapping[str, Mapping[str, Any]] = json.loads(record.read_text(encoding="utf-8"))
        _TRIED[module] = {
            kind: {key: (int(length), found) for key, (length, found) in tried.items()}
            for kind, tried in written.items()
        }


def _write(module: nn.Module) -> None:
    record = _RECORDS.get(module)
    if record is None:
        return
    written = {
        kind: {key: known for key, known in tried.items() if isinstance(key, str)}
        for kind, tried in _TRIED[module].items()
    }
    partial = record.with_name(f".{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(written), encoding="utf-8")
        partial.replace(record)


def _name(situation: Hashable) -> Hashable:
    """A situation as a text, the same in every process; itself where it holds more than plain data."""
    try:
        return json.dumps(situation, default=_in_order)
    except TypeError:
        return situation


def _in_order(value: object) -> list[Any]:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError
