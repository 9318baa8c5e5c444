"""The files of a loaded model and their hashes, computed in the background."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nnterp_mcp.runs.records import FileCard

_READ = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelOrigin:
    """The source of a model's weights: in words, the Hub's commit, the files, and the versions of a service."""

    source: str
    revision: str | None = None
    files: ModelFiles | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


class ModelFiles:
    """The files of a model's folder, hashed on a background thread.

    Args:
        folder: The folder.
        gguf: The one file that is read, when the weights are in a GGUF file.
        names: The files, where they are not all that a model is read from.
        base: The files of the model that these change, which count too.
    """

    def __init__(
        self,
        folder: Path,
        gguf: str | None = None,
        *,
        names: Sequence[str] = (),
        base: ModelFiles | None = None,
    ) -> None:
        self._base = base
        names = [gguf] if gguf else names or sorted(path.name for path in folder.iterdir() if path.suffix in _READ)
        self._paths = [folder / name for name in names]
        self._hashes: dict[str, str] = {}
        self._waiting: list[Callable[[], None]] | None = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._hash, daemon=True)
        self._thread.start()

    def cards(self) -> dict[str, FileCard]:
        """Each file's size, and its hash unless that is still being computed."""
        of_base = {} if self._base is None else self._base.cards()
        return of_base | {
            path.name: FileCard(bytes=path.stat().st_size, sha256=self._hashes.get(path.name))
            for path in self._paths
            if path.exists()
        }

    def wait(self) -> None:
        """Waits for the hashes."""
        self._thread.join()
        if self._base is not None:
            self._base.wait()

    def when_hashed(self, action: Callable[[], None]) -> None:
        """Runs an action as soon as all hashes are there: now, or on the background thread."""
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(partial(self.when_hashed, action))
                return
        if self._base is not None:
            self._base.when_hashed(action)
        else:
            action()

    def _hash(self) -> None:
        for path in self._paths:
            with suppress(OSError):
                self._hashes[path.name] = _sha256(path)
        with self._lock:
            waiting, self._waiting = self._waiting or [], None
        for action in waiting:
            action()


def _sha256(path: Path) -> str:
    """The hash of a file; the Hub's cache names large files by it, so that these need not be read."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
