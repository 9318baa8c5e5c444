"""Writes runs from the worker, before their answers are sent."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nnterp_mcp.contract import Answer, Result
from nnterp_mcp.errors import Cancelled, LimitExceeded, NnterpError
from nnterp_mcp.pool.messages import Recorded
from nnterp_mcp.runs.arrays import FileRows
from nnterp_mcp.runs.records import ArrayCard, RunEnvironment, RunError
from nnterp_mcp.runs.results import write_tables
from nnterp_mcp.runs.store import RunStore, now
from nnterp_mcp.runs.tables import ResultTables
from nnterp_mcp.worker.checkpoints import Checkpoint, key_of

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.worker.model_files import ModelFiles

WRITING = threading.Lock()
"""Locked while a record is being written: an exiting worker waits for it."""


class Recorder:
    """Writes the record of one run.

    Attributes:
        run_id: The run.
        arrays: The cards of the arrays that were written, by name.
        tables: The tables of the result; None for one that was not recorded.
        idle: Seconds in which the call gave way to others.
    """

    def __init__(self, store: RunStore, environment: Callable[[], RunEnvironment], recorded: Recorded) -> None:
        self._store = store
        self._environment = environment
        self.run_id = recorded.run
        self._queued = recorded.queued
        self.arrays: dict[str, ArrayCard] = {}
        self._rows: dict[str, FileRows] = {}
        self._checkpoint: Checkpoint | None = None
        self._begun = time.monotonic()
        self._lost: dict[str, str] = {}
        self._unhashed = False
        self.idle = 0.0
        self.tables: ResultTables | None = None

    def keep(self, name: str, array: Tensor, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Writes an array of the run; an error of the disk is reported by `finish`, and the rest is kept."""
        import torch

        host = array.detach().cpu()
        numbers = host.float() if host.dtype == torch.bfloat16 else host
        try:
            self.arrays[name] = self._store.write_array(self.run_id, name, numbers.contiguous().numpy(), axes)
        except OSError as error:
            self._lost[name] = _reason(error)

    def keep_rows(self, name: str, axes: Mapping[str, Sequence[int | str]]) -> FileRows:
        """Opens an array of the run that is filled row by row.

        Raises:
            LimitExceeded: It cannot be written.
        """
        self._rows[name] = FileRows(self._store.array_path(self.run_id, name), axes)
        return self._rows[name]

    def checkpoint(self) -> Checkpoint:
        """The checkpoint of this call, with the parts of an equal call that died; empty if the record is gone."""
        if self._checkpoint is None:
            try:
                record, environment = self._store.read(self.run_id), self._environment()
            except NnterpError:
                return Checkpoint(None)
            facts = {
                "tool": record.tool,
                "params": record.params,
                "fingerprint": environment.fingerprint,
                "versions": environment.versions,
                "device": environment.device_name,
                "dtype": environment.dtype,
                "attention": environment.attention,
            }
            self._checkpoint = Checkpoint.claim(self._store.unfinished / key_of(facts))
        return self._checkpoint

    def finish(self, result: Result, answer: Answer | None = None) -> list[str]:
        """Writes the result and closes the record.

        Args:
            result: The result.
            answer: The answer, stored with the tables of the result; without it they are made when they are asked for.

        Returns:
            Notes for the answer: the result or an array that could not be written, and why.
        """
        with WRITING:
            problem = self._close(result, None, answer)
        if self._checkpoint is not None:
            if problem is None:
                self._checkpoint.clear()
            self._checkpoint.release()
        if problem is not None:
            return [f"This answer could not be recorded ({problem}): read_run will not find it."]
        return [f"The array {name} could not be kept ({reason})." for name, reason in self._lost.items()]

    def fail(self, error: NnterpError, partial: Result | None) -> None:
        """Closes the record of a call that raised, with its partial result."""
        if self._checkpoint is not None:
            self._checkpoint.release()
        with WRITING:
            self._close(partial, error, None)

    def _close(self, result: Result | None, error: NnterpError | None, answer: Answer | None) -> str | None:
        """Completes the record; returns the reason of a failure, or None."""
        try:
            self._close_rows(result is not None)
            tables, environment = None, self._environment()
            self._unhashed = error is None and any(card.sha256 is None for card in environment.files.values())
            ended = self._end(error) | {"arrays": self.arrays, "environment": environment}
            if result is not None:
                digest = self._store.write_result(self.run_id, result.model_dump_json().encode())
                ended |= {"result_sha256": digest, "partial": error is not None}
            if result is not None and answer is not None:
                tables = ResultTables(write_tables(self._store, self.run_id, result, answer))
            self._store.write(self._store.read(self.run_id).model_copy(update=ended))
            self.tables = tables
        except (OSError, NnterpError) as problem:
            self._give_up(_reason(problem), error)
            return _reason(problem)
        return None

    def settle(self, files: ModelFiles | None) -> None:
        """Makes a closed record survive a loss of power, and completes it once the model's files are hashed.

        Called after the answer was sent, which waits for neither.
        """
        threading.Thread(target=self._store.sync, args=(self.run_id,), daemon=True).start()
        if files is not None and self._unhashed:
            files.when_hashed(lambda: self._complete(files))

    def _complete(self, files: ModelFiles) -> None:
        with WRITING, suppress(OSError, NnterpError):
            record = self._store.read(self.run_id)
            if record.environment is not None:
                environment = record.environment.model_copy(update={"files": files.cards()})
                self._store.write(record.model_copy(update={"environment": environment}))

    def _close_rows(self, wanted: bool) -> None:
        """Closes the arrays that are filled row by row; discards those of a run without a result."""
        for name, rows in self._rows.items():
            if wanted:
                self.arrays[name] = rows.close()
            else:
                rows.abandon()
        self._rows.clear()

    def _give_up(self, reason: str, error: NnterpError | None) -> None:
        """Records that the result is lost, after removing the run's files to make room."""
        lost = LimitExceeded(f"the result of {self.run_id} could not be recorded: {reason}", "Make room for runs.")
        try:
            self._store.empty(self.run_id)
            self._store.write(self._store.read(self.run_id).model_copy(update=self._end(error or lost)))
        except (OSError, NnterpError) as problem:
            print(f"the end of {self.run_id} could not be recorded: {_reason(problem)}", file=sys.stderr)

    def _end(self, error: NnterpError | None) -> dict[str, Any]:
        return {
            "state": "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed",
            "error": None if error is None else RunError.of(error),
            "ended": now(),
            "queue_seconds": self._queued,
            "compute_seconds": time.monotonic() - self._begun - self.idle,
        }


def _reason(error: OSError | NnterpError) -> str:
    """Why something could not be written, without the paths of this machine."""
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
