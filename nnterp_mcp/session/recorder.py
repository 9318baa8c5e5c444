"""The worker's end of a run's record: what was computed goes to disk before the answer goes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import Cancelled, NnterpError
from nnterp_mcp.session.checkpoints import Checkpoint, key_of
from nnterp_mcp.session.records import ArrayCard, RunError
from nnterp_mcp.session.store import RunStore, now
from nnterp_mcp.session.wire import Recorded

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.session.bench import Bench

WRITING = threading.Lock()
"""Held while a run is being finished: a worker that is told to end lets that happen first."""


class Recorder:
    """Writes one run.

    Attributes:
        run_id: The run.
    """

    def __init__(self, bench: Bench, recorded: Recorded) -> None:
        self._bench = bench
        self._store = RunStore(bench.settings.runs)
        self.run_id = recorded.run
        self._queued = recorded.queued
        self._arrays: dict[str, ArrayCard] = {}
        self._checkpoint: Checkpoint | None = None
        self._begun = time.monotonic()
        self._problem: OSError | None = None

    def keep(self, name: str, array: Tensor, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Writes an array beside the result; where the disk refuses, `finish` says so."""
        import torch

        host = array.detach().cpu()
        numbers = host.float() if host.dtype == torch.bfloat16 else host
        try:
            self._arrays[name] = self._store.write_array(self.run_id, name, numbers.contiguous().numpy(), axes)
        except OSError as error:
            self._problem = error

    def checkpoint(self) -> Checkpoint:
        """The parts of this call, those of an equal one that died among them."""
        if self._checkpoint is None:
            record, environment = self._store.read(self.run_id), self._bench.environment
            facts = {
                "tool": record.tool,
                "params": record.params,
                "fingerprint": environment.fingerprint,
                "versions": environment.versions,
                "device": environment.device_name,
                "dtype": environment.dtype,
                "attention": environment.attention,
            }
            self._checkpoint = Checkpoint(self._store.unfinished / key_of(facts))
        return self._checkpoint

    def finish(self, result: Result) -> str | None:
        """Writes the result and closes the record.

        Returns:
            Why it could not be recorded, None if it was.
        """
        with WRITING:
            problem = self._close(result, None)
        if self._checkpoint is not None:
            self._checkpoint.clear()
        return problem

    def fail(self, error: NnterpError, partial: Result | None) -> None:
        """Closes the record of a call that raised, with what it had."""
        with WRITING:
            self._close(partial, error)

    def _close(self, result: Result | None, error: NnterpError | None) -> str | None:
        ended: dict[str, Any] = {
            "state": "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed",
            "partial": error is not None and result is not None,
            "error": None if error is None else RunError.of(error),
            "ended": now(),
            "queue_seconds": self._queued,
            "compute_seconds": time.monotonic() - self._begun,
            "arrays": self._arrays,
        }
        try:
            if self._problem is not None:
                raise self._problem
            record = self._store.read(self.run_id)
            ended["environment"] = self._bench.environment
            if result is not None:
                ended["result_sha256"] = self._store.write_result(self.run_id, result.model_dump_json().encode())
            self._store.write(record.model_copy(update=ended))
        except (OSError, NnterpError) as problem:
            return str(problem)
        return None
