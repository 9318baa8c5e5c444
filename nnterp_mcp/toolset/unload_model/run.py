"""`unload_model` in the server: ends the worker's process."""

from __future__ import annotations

from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.session import Session
from nnterp_mcp.toolset.unload_model.params import UnloadModelParams
from nnterp_mcp.toolset.unload_model.result import UnloadModelResult


async def run(session: Session, params: UnloadModelParams, on_progress: OnProgress) -> UnloadModelResult:
    """Ends the process and reports what it held."""
    pool = session.pool
    worker = pool.find(params.model, loading=True).worker
    memory = None if worker is None else worker.host_memory()
    entry = await pool.unload(params.model)
    return UnloadModelResult(handle=entry.handle, memory=memory, remaining=[left.handle for left in pool.entries])
