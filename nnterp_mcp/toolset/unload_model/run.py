"""`unload_model` in the server: ends the worker's process, or an adapted model that shares one."""

from __future__ import annotations

from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.session import Session
from nnterp_mcp.toolset.unload_model.params import UnloadModelParams
from nnterp_mcp.toolset.unload_model.result import UnloadModelResult


async def run(session: Session, params: UnloadModelParams, on_progress: OnProgress) -> UnloadModelResult:
    """Ends the process and reports what it held."""
    pool = session.pool
    entry = pool.find(params.model, loading=True)
    memory = None if entry.worker is None or entry.base is not None else entry.worker.host_memory()
    entry = await pool.unload(entry.handle)
    return UnloadModelResult(
        handle=entry.handle,
        memory=memory,
        remaining=[left.handle for left in pool.entries],
        base=None if entry.base is None else entry.base.handle,
    )
