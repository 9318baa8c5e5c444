"""The server's self-description: its homepage, its icon, and the protocol versions that it supports."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp_types import DiscoverResult, Icon, RequestParams
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

HOMEPAGE = "https://github.com/nnterp-mcp/nnterp-mcp"

_DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">'
    '<path fill="#4269d0" d="M1 1h6v1H1zm0 2.5h4v1H1zM1 6h2v1H1z"/></svg>'
)
ICON = Icon(
    src="data:image/svg+xml;base64," + base64.b64encode(_DRAWING.encode()).decode(),
    mime_type="image/svg+xml",
    sizes=["any"],
)
"""Narrowing layers; small, since it is sent with every answer."""


def discovery(server: Server[Any]) -> Callable[[ServerRequestContext[Any], RequestParams | None], Awaitable[Any]]:
    """Answers `server/discover` with every supported version, those with a handshake included."""

    async def discover(context: ServerRequestContext[Any], params: RequestParams | None) -> DiscoverResult:
        return DiscoverResult(
            supported_versions=[*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS],
            capabilities=server.get_capabilities(protocol_version=context.protocol_version),
            instructions=server.instructions,
        )

    return discover
