"""`session` in the server: answered without asking a worker, so that a busy model does not hold it up."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio
import psutil

from nnterp_mcp.pool.deployments import describe_deployments
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.live_runs import Runs
from nnterp_mcp.pool.pool import Entry
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.operations import describe
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.session.params import SessionParams
from nnterp_mcp.toolset.session.result import LoadedModel, RunLine, SessionResult

_RUNS = 8
"""Runs that an answer shows, more when more are under way."""


async def run(session: Session, params: SessionParams, on_progress: OnProgress) -> SessionResult:
    """Describes every model of the pool, the latest runs, and every vector on disk."""
    runs, vectors = await anyio.to_thread.run_sync(lambda: (_runs(session.runs), session.vectors.cards()))
    return SessionResult(
        models=[_describe(entry) for entry in session.pool.entries],
        runs=runs,
        vectors=vectors,
        gone=session.pool.gone,
        free_memory=psutil.virtual_memory().available,
        ndif=await _deployments(session.settings),
    )


async def _deployments(settings: Settings) -> str | None:
    if settings.ndif_host is None:
        return None
    return await anyio.to_thread.run_sync(describe_deployments, settings.ndif_host, settings.ndif_key())


def _runs(runs: Runs) -> list[RunLine]:
    """The runs under way, then those that ended last."""
    live = {run.id: run for run in runs.live}
    kept = [record for record in runs.store.latest(_RUNS + len(live)) if record.id not in live]
    lines = [
        _line(run.record, "queued" if run.waits else "running", run.progress.message if run.progress else None)
        for run in live.values()
    ]
    lines += [_line(record, record.state, None) for record in kept]
    return lines[: max(_RUNS, len(live))]


def _line(record: RunRecord, state: str, progress: str | None) -> RunLine:
    age = (datetime.now(UTC) - datetime.fromisoformat(record.opened)).total_seconds()
    return RunLine(
        id=record.id, tool=record.tool, model=record.model, state=state, age=max(0.0, age), progress=progress
    )


def _describe(entry: Entry) -> LoadedModel:
    card = entry.card or {}
    return LoadedModel(
        handle=entry.handle,
        source=entry.source,
        state="loading" if entry.card is None else "ready",
        device=card.get("device"),
        dtype=card.get("dtype"),
        age=time.time() - entry.since,
        host_memory=None if entry.worker is None else entry.worker.host_memory(),
        device_memory=None if entry.worker is None else entry.worker.device_memory,
        edits=[describe(operation) for operation in entry.edits],
    )
