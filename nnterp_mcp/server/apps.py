"""The viewer as an MCP App (SEP-1865, 2026-01-26): a page that a host shows with the answers of some tools."""

from __future__ import annotations

from typing import Any

from mcp_types import TextResourceContents

from nnterp_mcp.viewer.page import page, viewed_tools

EXTENSION = "io.modelcontextprotocol/ui"
"""The identifier under which clients and servers say that they know MCP Apps."""

VIEWER = "ui://nnterp/viewer.html"
"""The address of the page."""

MIME_TYPE = "text/html;profile=mcp-app"
"""The type under which hosts show a page."""


def tool_meta(name: str) -> dict[str, Any] | None:
    """Metadata that tells a host to show the viewer with a tool's answers; None for a tool without a view."""
    return {"ui": {"resourceUri": VIEWER}} if name in viewed_tools() else None


def viewer() -> TextResourceContents:
    """The page; it asks for no domain and no permission, so that a host's strictest policy fits it."""
    return TextResourceContents(uri=VIEWER, text=page(), mime_type=MIME_TYPE, _meta={"ui": {"prefersBorder": True}})
