"""`read_run` in the server: from the record on disk, whoever made it; nothing here needs the model."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.to_thread

from nnterp_mcp.contract import Answer
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.live_runs import LiveRun, late
from nnterp_mcp.pool.reading import list_runs, read
from nnterp_mcp.pool.session import Session
from nnterp_mcp.toolset.read_run.params import ReadRunParams
from nnterp_mcp.toolset.read_run.result import ReadRunResult


async def run(session: Session, params: ReadRunParams, on_progress: OnProgress) -> ReadRunResult | Answer:
    """Waits for a run under way, or for the first of several, then reads what is asked for."""
    several = len(params.run_id) > 1
    if several and params.part != "answer":
        raise InvalidRequest("several runs are listed with what they found.", "Name one run to read a part of it.")
    live = [found for run_id in params.run_id if (found := session.runs.find(run_id)) is not None]
    if len(live) == len(params.run_id) and params.part != "record":
        with anyio.move_on_after(min(params.wait_seconds, session.settings.reply_within)):
            await _first_end(live, on_progress)
        if not several and not live[0].ended.is_set():
            return late(live[0])
    if several:
        under_way = {one.id: late(one).finding for one in live if not one.ended.is_set()}
        return await anyio.to_thread.run_sync(list_runs, session.runs.store, params.run_id, under_way)
    return await anyio.to_thread.run_sync(read, session.runs.store, params)


async def _first_end(runs: Sequence[LiveRun], on_progress: OnProgress) -> None:
    """Waits until one of the runs has ended."""

    async def follow(one: LiveRun) -> None:
        await one.follow(on_progress)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for one in runs:
            group.start_soon(follow, one)
