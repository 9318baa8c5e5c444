"""HTTP refusals with a JSON-RPC error as body, since clients show its text and not a bare status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from nnterp_mcp.errors import NnterpError

_SERVER_ERROR = -32000
"""JSON-RPC's code for errors defined by the server."""


def http_refusal(
    status: int, error: NnterpError, headers: Mapping[str, str] | None = None, retry_after: int | None = None
) -> JSONResponse:
    """An error as the answer to a request whose id was not read.

    Args:
        status: The HTTP status.
        error: What is refused, and what to do.
        headers: Headers of the answer.
        retry_after: Seconds until it is worth trying again.
    """
    message = f"{error.code}: {error.message.rstrip('.')}. {error.next_step}".rstrip()
    data: dict[str, Any] = {"code": error.code} | ({} if retry_after is None else {"retryAfter": retry_after})
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": _SERVER_ERROR, "message": message, "data": data}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))
