"""Checkpoints of long calls: an equal call resumes one that died."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from nnterp_mcp.runs.atomic_files import write_whole

_M = TypeVar("_M")


def key_of(facts: Mapping[str, Any]) -> str:
    """A hash of everything that determines a call's numbers."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


_claimed: set[Path] = set()
"""Folders that calls of this process are using."""


class Checkpoint:
    """The finished parts of one call, by name; without a folder it stores nothing."""

    @classmethod
    def claim(cls, folder: Path) -> Checkpoint:
        """The checkpoint in a folder, for one call until it calls `release`; equal ones at the same time store nothing.

        Otherwise each of them would report what the other one computed.
        """
        if folder in _claimed:
            return cls(None)
        _claimed.add(folder)
        return cls(folder)

    def release(self) -> None:
        """Lets the next equal call claim the folder."""
        if self._folder is not None:
            _claimed.discard(self._folder)

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def take(self, name: str, kind: type[_M]) -> _M | None:
        """A part that was finished earlier, None without a readable one."""
        if self._folder is None:
            return None
        try:
            return TypeAdapter(kind).validate_json((self._folder / f"{name}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def put(self, name: str, part: object) -> None:
        """Saves a part; errors of the disk are ignored."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = to_json(part, inf_nan_mode="strings")
            write_whole(self._folder / f"{name}.json", content, sync=False)
        except OSError:
            return

    def clear(self) -> None:
        """Removes every part, after the call has ended well."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
