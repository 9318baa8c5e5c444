"""The runs on disk: one folder each, shared by any number of processes, deleted by age and quota.

A folder holds `run.json` (the record), `result.json` (the result, whole), `result.tables` (the same by columns, with
the answer; made again where it is missing) and one safetensors file for each array; `figure.png` and `figure.html` once
somebody has asked for the run's figure.
`pinned` is an empty file: a run that has it is never deleted by the quota. Every file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from nnterp_mcp.errors import InvalidRequest, LimitExceeded, NnterpError
from nnterp_mcp.redaction import redact
from nnterp_mcp.runs.arrays import TENSOR
from nnterp_mcp.runs.atomic_files import write_whole
from nnterp_mcp.runs.records import LATEST, ArrayCard, RunRecord, check_run_id, is_run_id

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_DAY = 86400.0
RESULT = "result.json"
TABLES = "result.tables"
_LEFTOVER = 7 * _DAY
"""Seconds after which checkpoints of unfinished calls are removed."""

_OPENING = 60.0
"""Seconds in which a folder without a record may belong to a run that is being opened."""


def now() -> str:
    """The time, in ISO 8601 and UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Quota:
    """Limits of the store; pinned and running runs count but are never deleted."""

    bytes: float
    days: float


@dataclass(frozen=True)
class RunStore:
    """The runs below one folder."""

    folder: Path

    @property
    def unfinished(self) -> Path:
        """The folder of checkpoints: finished parts of unfinished calls."""
        return self.folder / "unfinished"

    def open(self, tool: str, describe: Callable[[str], RunRecord]) -> RunRecord:
        """Begins a run: mints its id and writes its record.

        Args:
            tool: The tool's name.
            describe: Makes the record for an id.

        Raises:
            LimitExceeded: The record cannot be written; nothing was computed yet.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            run_id = self._mint(tool)
            try:
                record = describe(run_id)
                self.write(record)
            except BaseException:
                self.delete(run_id)
                raise
        except OSError as error:
            raise unwritable(error) from error
        return record

    def write(self, record: RunRecord) -> None:
        """Replaces a run's record.

        Raises:
            OSError: It cannot be written; the old record is still there.
        """
        write_whole(self._path(record.id) / "run.json", redact(record.model_dump_json()).encode(), sync=False)

    def read(self, run_id: str) -> RunRecord:
        """A run's record.

        Raises:
            InvalidRequest: There is no such run, or its record is damaged.
        """
        path = self._path(run_id)
        try:
            return RunRecord.model_validate_json((path / "run.json").read_bytes()).current()
        except FileNotFoundError:
            raise InvalidRequest(
                f"there is no run {run_id!r}: it never was, or was deleted to make room.", *LATEST
            ) from None
        except OSError as error:
            raise InvalidRequest(f"the record of {run_id} cannot be read: {os.strerror(error.errno or 0)}.") from error
        except ValidationError:
            raise InvalidRequest(f"the record of {run_id} is damaged.", "Run the experiment again.") from None

    def latest(self, count: int) -> list[RunRecord]:
        """The records of the runs that were written last, the newest first; damaged ones are passed over."""
        found: list[RunRecord] = []
        for run_id in self._by_age():
            if len(found) == count:
                break
            try:
                found.append(self.read(run_id))
            except NnterpError:
                continue
        return sorted(found, key=lambda record: record.opened, reverse=True)

    def write_result(self, run_id: str, result: bytes) -> str:
        """Writes a run's result and returns its SHA-256 for the record.

        Raises:
            OSError: It cannot be written.
        """
        write_whole(self._path(run_id) / RESULT, result, sync=False)
        return hashlib.sha256(result).hexdigest()

    def read_result(self, record: RunRecord) -> bytes:
        """A run's result.

        Raises:
            InvalidRequest: There is none, or it is damaged.
        """
        return self.find_result(record).read_bytes()

    def find_result(self, record: RunRecord) -> Path:
        """The file of a run's result.

        Raises:
            InvalidRequest: There is none, or it is damaged.
        """
        if record.result_sha256 is None:
            raise _without_result(record)
        path = self.file_path(record.id, RESULT)
        try:
            with path.open("rb") as source:
                intact = hashlib.file_digest(source, "sha256").hexdigest() == record.result_sha256
        except OSError:
            intact = False
        if not intact:
            raise InvalidRequest(f"the result of {record.id} is damaged.", "Run the experiment again.")
        return path

    def write_array(
        self, run_id: str, name: str, array: Shaped[np.ndarray, "*axes"], axes: Mapping[str, Sequence[int | str]]
    ) -> ArrayCard:
        """Writes an array into a run's folder.

        Args:
            run_id: The run.
            name: The array's name.
            array: The numbers.
            axes: The labels along each axis, in order.

        Raises:
            OSError: It cannot be written.
        """
        import numpy as np
        from safetensors.numpy import save

        card = ArrayCard(
            dtype=str(array.dtype), shape=list(array.shape), axes={axis: list(of) for axis, of in axes.items()}
        )
        # safetensors writes an array's memory in its own order.
        content = save({TENSOR: np.asarray(array, order="C")}, {"axes": json.dumps(card.axes)})
        write_whole(self.array_path(run_id, name), content, sync=False)
        return card

    def read_array(self, run_id: str, name: str, index: tuple[Any, ...]) -> Shaped[np.ndarray, "*axes"]:
        """A part of an array.

        Args:
            run_id: The run.
            name: The array's name.
            index: Slices, one for each axis; only what they name is read from the disk.

        Raises:
            InvalidRequest: The file is gone or damaged.
        """
        try:
            with safe_open(self.array_path(run_id, name), framework="numpy") as source:
                return source.get_slice(TENSOR)[index]
        except (OSError, SafetensorError):
            raise InvalidRequest(
                f"the array {name!r} of {run_id} is gone or damaged.", "Run the experiment again."
            ) from None

    def write_file(self, run_id: str, name: str, content: bytes) -> None:
        """Writes a file into a run's folder, such as its picture.

        Raises:
            OSError: It cannot be written.
        """
        write_whole(self._path(run_id) / name, content, sync=False)

    def read_file(self, run_id: str, name: str) -> bytes | None:
        """Reads a file of a run's folder; None if there is none."""
        try:
            return (self._path(run_id) / name).read_bytes()
        except OSError:
            return None

    def result_stamp(self, run_id: str) -> list[int] | None:
        """The size of a result's file and the time at which it was written; None if it is gone."""
        try:
            found = self.file_path(run_id, RESULT).stat()
            return [found.st_size, found.st_mtime_ns]
        except OSError:
            return None

    def array_path(self, run_id: str, name: str) -> Path:
        """The path of an array."""
        return self.file_path(run_id, f"{name}.safetensors")

    def file_path(self, run_id: str, name: str) -> Path:
        """The path of a file in a run's folder."""
        return self._path(run_id) / name

    def sync(self, run_id: str) -> None:
        """Waits until the files of a run are on the disk, so that they survive a loss of power."""
        with suppress(OSError, NnterpError):  # another process may delete them meanwhile
            for entry in os.scandir(self._path(run_id)):
                descriptor = os.open(entry.path, os.O_RDWR)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def empty(self, run_id: str) -> None:
        """Removes every file of a run but its record.

        Raises:
            OSError: A file cannot be removed.
        """
        for path in self._path(run_id).iterdir():
            if path.name not in ("run.json", "pinned"):
                path.unlink()

    def pin(self, run_id: str, pinned: bool) -> None:
        """Pins or unpins a run; the quota never deletes a pinned one.

        Raises:
            InvalidRequest: There is no such run.
        """
        self.read(run_id)
        mark = self._path(run_id) / "pinned"
        if pinned:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    def is_pinned(self, run_id: str) -> bool:
        """True if a run is pinned."""
        return (self._path(run_id) / "pinned").exists()

    def delete(self, run_id: str) -> None:
        """Removes a run atomically."""
        path = self._path(run_id)
        aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            path.rename(aside)
        except OSError:  # another process was faster
            return
        shutil.rmtree(aside, ignore_errors=True)

    def size(self, run_id: str) -> int:
        """Bytes that a run takes on disk."""
        return _size(self._path(run_id))

    def sweep(self, quota: Quota) -> list[str]:
        """Deletes the oldest runs that are too old or too many bytes, and returns their ids.

        A run that is pinned, or that a live process works on, stays whatever the quota says.
        """
        ids = list(self._by_age())
        sizes = {run_id: _size(self._path(run_id)) for run_id in ids}
        total = sum(sizes.values()) + sum(map(_size, self.unfinished.glob("*")))
        oldest = time.time() - quota.days * _DAY
        deleted: list[str] = []
        for run_id in reversed(ids):
            if total <= quota.bytes and _modified(self._path(run_id)) >= oldest:
                continue
            if self.is_pinned(run_id) or self._runs(run_id):
                continue
            self.delete(run_id)
            total -= sizes[run_id]
            deleted.append(run_id)
        self._sweep_leftovers(oldest)
        return deleted

    def _sweep_leftovers(self, oldest: float) -> None:
        """Removes old checkpoints, and leftovers of processes that died while deleting a run."""
        leftovers = [*self.unfinished.glob("*"), *self.folder.glob(".*")]
        for path in leftovers:
            if _modified(path) < max(oldest, time.time() - _LEFTOVER):
                shutil.rmtree(path, ignore_errors=True)

    def _runs(self, run_id: str) -> bool:
        """True if a live process works on a run, or has just made its folder."""
        try:
            return self.read(run_id).state == "running"
        except NnterpError:
            return _modified(self._path(run_id)) > time.time() - _OPENING

    def _mint(self, tool: str) -> str:
        """Mints a run's id and makes its folder; the file system guarantees uniqueness among processes."""
        while True:
            run_id = f"{tool}-{''.join(secrets.choice(_LETTERS) for _ in range(6))}"
            try:
                self._path(run_id).mkdir()
            except FileExistsError:
                continue
            return run_id

    def _by_age(self) -> Iterator[str]:
        try:
            entries = [(entry.name, _modified(Path(entry.path))) for entry in os.scandir(self.folder)]
        except OSError:
            return
        for name, _ in sorted(entries, key=lambda entry: entry[1], reverse=True):
            if is_run_id(name):
                yield name

    def _path(self, run_id: str) -> Path:
        return self.folder / check_run_id(run_id)


def unwritable(error: OSError) -> LimitExceeded:
    """The error of a run that cannot be recorded."""
    return LimitExceeded(
        f"the run cannot be recorded: {os.strerror(error.errno or 0)}; nothing was computed",
        "Make room or another place for runs: whoever starts the server can say --runs DIR.",
    )


def _without_result(record: RunRecord) -> InvalidRequest:
    """The error for a run without a result."""
    if record.error is not None:
        why, what, typed = record.error.message, record.error.next_step, ""
    elif record.state == "interrupted":
        why = "its server ended before it did"
        what = typed = "Make the call again: it takes up what was finished."
    else:
        why = f"it is {record.state}"
        what, typed = "session shows how far it is.", "nnterp-mcp runs shows when it has ended."
    return InvalidRequest(
        f"{record.id} has no result: {why}.",
        f"{what} part='record' shows its parameters.".strip(),
        f"{typed} --part record shows its parameters.".strip(),
    )


def _size(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
