"""Runs as tasks (SEP-2663): a client that declares the extension gets a handle in place of a late answer and polls it.

A task's id is the id of its run, so that a task outlives the connection and the server: any run on disk can be asked
for. Tasks exist in the protocol of 2026-07-28 alone; other clients wait with `read_run`. Nothing here asks for input.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ErrorData,
    RequestParams,
    Result,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from nnterp_mcp.errors import Cancelled, InvalidRequest, NnterpError
from nnterp_mcp.pool.live_runs import LiveRun
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.pool.reading import read_answer
from nnterp_mcp.pool.session import Session
from nnterp_mcp.runs import figures
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import now
from nnterp_mcp.server import replies
from nnterp_mcp.toolset import specs

_Context = ServerRequestContext[Any]

TASKS = "io.modelcontextprotocol/tasks"
"""The identifier under which clients and servers say that they know tasks."""

AT_ONCE = 1.0
"""Seconds within which an answer comes at once, without a task."""

_POLL_MS = 1000, 10_000
"""The shortest and the longest interval between polls: a tenth of the run's age so far, between these."""

_DAY_MS = 86_400_000


class TaskParams(RequestParams):
    """The parameters of every method of tasks: the run's id."""

    task_id: str


class Task(Result):
    """A task as clients see it, with its outcome once it has one."""

    result_type: Literal["task", "complete"] = "complete"
    task_id: str
    status: Literal["working", "completed", "failed", "cancelled"]
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int
    poll_interval_ms: int | None = None
    result: dict[str, Any] | None = None
    error: ErrorData | None = None


class Tasks:
    """The tasks of a server.

    Args:
        session: The server's session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pictured: set[str] = set()

    def serve(self, server: Server[Any]) -> None:
        """Declares the extension and registers its methods."""
        server.extensions[TASKS] = {}
        for method, handler in (("get", self.get), ("update", self.update), ("cancel", self.cancel)):
            server.add_request_handler(f"tasks/{method}", TaskParams, handler)

    def create(self, run: LiveRun, pictured: bool) -> Task:
        """The handle of a run that has not ended.

        Args:
            run: The run.
            pictured: True if its answer is wanted with a picture.
        """
        if pictured:
            self._pictured.add(run.id)
        return self._working(run.record, run.progress).model_copy(update={"result_type": "task"})

    async def get(self, context: _Context, params: TaskParams) -> Task:
        """The task now, with the result of its call once that is there."""
        _admit(context, params)
        run = self._session.runs.find(params.task_id)
        if run is not None:
            return self._working(run.record, run.progress)
        return await anyio.to_thread.run_sync(self._ended, await self._record(params))

    async def update(self, context: _Context, params: TaskParams) -> Result:
        """Acknowledges answers to questions; as no run asks any, they are ignored."""
        _admit(context, params)
        await self._record(params)
        return Result()

    async def cancel(self, context: _Context, params: TaskParams) -> Result:
        """Asks a run to end before its next batch; one that has ended stays as it is."""
        _admit(context, params)
        await self._record(params)
        run = self._session.runs.find(params.task_id)
        if run is not None:
            run.cancel(Cancelled(f"{run.id} was cancelled"))
        return Result()

    async def _record(self, params: TaskParams) -> RunRecord:
        """The record of a task's run.

        Raises:
            MCPError: There is none: it never was, or it has expired.
        """
        try:
            return await anyio.to_thread.run_sync(self._session.runs.store.read, params.task_id)
        except InvalidRequest as error:
            raise MCPError(INVALID_PARAMS, replies.worded(error)) from None

    def _working(self, record: RunRecord, progress: Progress | None) -> Task:
        age = datetime.now(UTC) - datetime.fromisoformat(record.opened)
        shortest, longest = _POLL_MS
        return self._task(
            record,
            status="working",
            status_message=progress.message if progress else None,
            last_updated_at=now(),
            poll_interval_ms=min(max(int(age.total_seconds() * 100), shortest), longest),
        )

    def _ended(self, record: RunRecord) -> Task:
        """A task whose run has ended; the error of a tool is a result, as in `tools/call`."""
        error = record.error
        if record.state == "cancelled":
            kept = " What it had computed is kept: read_run gives it." if record.partial else ""
            return self._task(record, status="cancelled", status_message=f"{error and error.message}.{kept}")
        if record.state == "running":  # on another server that shares the folder
            return self._working(record, None)
        if record.state == "interrupted":
            lost = ErrorData(code=INTERNAL_ERROR, message=f"the server of {record.id} ended before the run did")
            return self._task(record, status="failed", status_message=lost.message, error=lost)
        try:
            answer = read_answer(self._session.runs.store, record)
            if record.id in self._pictured:
                answer.picture = figures.draw(self._session.runs.store, record, specs())
            result = replies.answered(answer)
        except NnterpError as refused:
            result = replies.refused(refused)
        data = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return self._task(record, status="completed", result=data)

    def _task(self, record: RunRecord, **state: Any) -> Task:
        lasting: dict[str, Any] = {
            "task_id": record.id,
            "created_at": record.opened,
            "last_updated_at": record.ended or record.opened,
            "ttl_ms": int(self._session.settings.max_runs_days * _DAY_MS),
        }
        return Task.model_validate(lasting | state)


def declared(context: _Context) -> bool:
    """True for a request whose client knows tasks."""
    capabilities = context.session.client_capabilities
    extensions = (capabilities.extensions if capabilities else None) or {}
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS and TASKS in extensions


def _admit(context: _Context, params: TaskParams) -> None:
    """Refuses a request outside the extension's terms.

    Raises:
        MCPError: The protocol's version has no tasks, the client does not declare them, or its header names another.
    """
    if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(METHOD_NOT_FOUND, "Method not found")
    if not declared(context):
        data = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, f"the client does not declare {TASKS}", data)
    named = context.request.headers.get(MCP_NAME_HEADER) if context.request is not None else None
    if named is not None and decode_header_value(named) != params.task_id:
        raise MCPError(HEADER_MISMATCH, f"the header {MCP_NAME_HEADER} names another task than taskId")
