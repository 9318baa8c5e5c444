"""Pagination: every list of this server is one page."""

from __future__ import annotations

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, PaginatedRequestParams

from nnterp_mcp.request.arguments import shown


def first_page(params: PaginatedRequestParams | None) -> None:
    """Refuses pagination cursors: no list of this server returns one.

    Raises:
        MCPError: There is a cursor.
    """
    if params is not None and params.cursor is not None:
        raise MCPError(INVALID_PARAMS, f"There is no cursor {shown(params.cursor)}: this list has one page.")
