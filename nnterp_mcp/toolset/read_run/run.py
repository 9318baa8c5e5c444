"""`read_run` in the server: from the record on disk, whoever made it; nothing here needs the model."""

from __future__ import annotations

import anyio
import anyio.to_thread

from nnterp_mcp.contract import Answer
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.live_runs import late
from nnterp_mcp.pool.reading import read
from nnterp_mcp.pool.session import Session
from nnterp_mcp.toolset.read_run.params import ReadRunParams
from nnterp_mcp.toolset.read_run.result import ReadRunResult


async def run(session: Session, params: ReadRunParams, on_progress: OnProgress) -> ReadRunResult | Answer:
    """Waits for a run under way, then reads what is asked for."""
    run = session.runs.find(params.run_id)
    if run is not None and params.part != "record":
        with anyio.move_on_after(min(params.wait_seconds, session.settings.reply_within)):
            await run.follow(on_progress)
        if not run.ended.is_set():
            return late(run)
    return await anyio.to_thread.run_sync(read, session.runs.store, params)
