"""`session` in the server: answered without asking a worker, so that a busy model does not hold it up."""

from __future__ import annotations

import time

import psutil

from nnterp_mcp.session.pool import Entry, Pool
from nnterp_mcp.session.process import OnProgress
from nnterp_mcp.session.vectors import VectorStore
from nnterp_mcp.toolset.session.contract import LoadedModel, SessionParams, SessionResult


async def handle(pool: Pool, params: SessionParams, on_progress: OnProgress) -> SessionResult:
    """Describes every model of the pool, and every vector on disk."""
    return SessionResult(
        models=[_describe(entry) for entry in pool.entries],
        vectors=VectorStore(pool.settings.data / "vectors").cards(),
        gone=pool.gone,
        free_memory=psutil.virtual_memory().available,
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
    )
