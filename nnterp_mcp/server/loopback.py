"""The viewer in a browser: one run on a loopback port, under a secret path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from nnterp_mcp.contract import Answer
from nnterp_mcp.errors import InvalidRequest, NnterpError
from nnterp_mcp.pool.reading import read
from nnterp_mcp.server import replies
from nnterp_mcp.server.auth import HostCheck, transport_security
from nnterp_mcp.server.limits import BodyLimit
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.read_run import SPEC
from nnterp_mcp.viewer.page import page, policy

if TYPE_CHECKING:
    from mcp_types import CallToolResult
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from nnterp_mcp.runs.store import RunStore

_LARGEST_REQUEST = 100_000
"""Bytes; a request names rows and columns."""


def viewer_app(store: RunStore, run_id: str, secret: str) -> ASGIApp:
    """Serves the page under `/SECRET/`, and `read_run` of this one run.

    Requests under another host's name are refused, so that no web page reaches it by DNS rebinding.

    Args:
        store: The run store.
        run_id: The run.
        secret: The path, which cannot be guessed.
    """

    async def show(request: Request) -> Response:
        headers = {
            "Content-Security-Policy": f"{policy('server')}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return HTMLResponse(page("server"), headers=headers)

    async def read_run(request: Request) -> Response:
        try:
            asked = await request.json()
        except ValueError:
            asked = None
        reply = await run_in_threadpool(_reply, store, run_id, asked)
        return JSONResponse(reply.model_dump(mode="json", by_alias=True, exclude_none=True))

    routes = [Route(f"/{secret}/", show), Route(f"/{secret}/read_run", read_run, methods=["POST"])]
    app: ASGIApp = BodyLimit(Starlette(routes=routes), _LARGEST_REQUEST)
    return HostCheck(app, transport_security(Settings.model_construct()))


def _reply(store: RunStore, run_id: str, asked: Any) -> CallToolResult:
    try:
        if not isinstance(asked, dict):
            raise InvalidRequest("a request is a JSON object with the arguments of read_run.")
        found = read(store, SPEC.parse(asked | {"run_id": run_id}))
        return replies.answered(found if isinstance(found, Answer) else SPEC.digest(found))
    except NnterpError as error:
        return replies.refused(error)
