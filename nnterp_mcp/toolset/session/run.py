"""`session` in the server: answered without asking a worker, so that a busy model does not hold it up."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio
import psutil

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.pool.deployments import describe_deployments
from nnterp_mcp.pool.entry import Entry
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.live_runs import Runs
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.named_sets import UNGROUPED, NamedSet, SetItem
from nnterp_mcp.request.operations import describe
from nnterp_mcp.request.prompt_sets import PromptFile, read_prompt_file
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import now
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.session.params import SessionParams
from nnterp_mcp.toolset.session.result import LoadedModel, RunLine, SessionResult, SetLine

_RUNS = 8
"""Runs that an answer shows, more when more are under way."""


async def run(session: Session, params: SessionParams, on_progress: OnProgress) -> SessionResult:
    """Saves or deletes a prompt set; describes the models, the latest runs, and the vectors and prompt sets on disk."""
    replaced = await anyio.to_thread.run_sync(_change_sets, session, params)
    runs, vectors, sets, dictionaries = await anyio.to_thread.run_sync(
        lambda: (
            _runs(session.runs),
            session.vectors.cards(),
            session.prompt_sets.sets(),
            session.dictionaries.cards(),
        )
    )
    return SessionResult(
        models=[_describe(entry) for entry in session.pool.entries],
        runs=runs,
        vectors=vectors,
        sets=[_describe_set(named) for named in sets],
        dictionaries=dictionaries,
        gone=session.pool.gone,
        free_memory=psutil.virtual_memory().available,
        ndif=await _deployments(session.settings),
        saved=params.save_set,
        replaced=replaced,
        deleted=params.delete_set,
    )


def _change_sets(session: Session, params: SessionParams) -> bool:
    """Saves or deletes a prompt set; true if one of that name is replaced."""
    if params.delete_set is not None:
        session.prompt_sets.delete(params.delete_set)
    if params.save_set is None or params.prompts is None:
        return False
    settings, contents = session.settings, params.prompts
    if isinstance(contents, PromptFile):
        path = allowed_file(contents.path, settings.folders)
        contents = {UNGROUPED: read_prompt_file(path, settings.max_prompts)}
    count = sum(map(len, contents.values()))
    if count > settings.max_prompts:
        raise LimitExceeded(f"{count} prompts, and this server allows {settings.max_prompts} a call.")
    groups = {
        name: [SetItem.model_validate(item.model_dump(mode="json")) for item in items]
        for name, items in contents.items()
    }
    return session.prompt_sets.save(NamedSet(name=params.save_set, groups=groups, made=now()))


def _describe_set(named: NamedSet) -> SetLine:
    categories = next((list(item.targets) for items in named.groups.values() for item in items), [])
    counts = {name: len(items) for name, items in named.groups.items()}
    return SetLine(name=named.name, groups=counts, categories=categories, age=_age(named.made))


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
    return RunLine(
        id=record.id,
        tool=record.tool,
        model=record.model,
        state=state,
        age=_age(record.opened),
        progress=progress,
    )


def _age(since: str) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())


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
        held={} if entry.worker is None or entry.base is not None else dict(entry.worker.held),
        uncaptured={} if entry.worker is None else dict(entry.worker.uncaptured),
    )
