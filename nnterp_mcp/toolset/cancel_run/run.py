"""`cancel_run` in the server."""

from __future__ import annotations

from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.session import Session
from nnterp_mcp.toolset.cancel_run.params import CancelRunParams
from nnterp_mcp.toolset.cancel_run.result import CancelRunResult


async def run(session: Session, params: CancelRunParams, on_progress: OnProgress) -> CancelRunResult:
    """Ends the run and waits until it has ended."""
    running = session.runs.find(params.run_id) is not None
    record = await session.runs.cancel(params.run_id)
    return CancelRunResult(run_id=record.id, state=record.state, partial=record.partial, was_running=running)
