"""The one place where answers and errors become MCP results; every list of this server is one page."""

from __future__ import annotations

import base64

from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolResult,
    ContentBlock,
    ImageContent,
    PaginatedRequestParams,
    TextContent,
)

from nnterp_mcp.contract import Answer
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.formatting import escaped, escaped_data, rounded
from nnterp_mcp.redaction import redact
from nnterp_mcp.request.arguments import shown

_LONGEST_ERROR = 2000
"""Characters of an error, which may quote a long argument."""


def answered(answer: Answer) -> CallToolResult:
    """An answer as text and as structured content, and its picture if it has one."""
    data = answer.structured()
    data = escaped_data(data if answer.exact else rounded(data))
    content: list[ContentBlock] = [TextContent(text=written(answer))]
    if answer.picture is not None:
        content.append(ImageContent(data=base64.b64encode(answer.picture).decode(), mime_type="image/png"))
    return CallToolResult(content=content, structured_content=data)


def written(answer: Answer) -> str:
    """An answer as text, with the id of its run."""
    text = escaped(answer.text())
    return text if answer.run_id is None else f"{text}\nrun_id: {answer.run_id}"


def refused(error: NnterpError) -> CallToolResult:
    """An error, complete in the text."""
    return CallToolResult(content=[TextContent(text=worded(error))], is_error=True)


def worded(error: NnterpError) -> str:
    """An error as text: its code, what failed, and what to do."""
    text = redact(f"{error.code}: {error.message}")
    if len(text) > _LONGEST_ERROR:
        text = text[: _LONGEST_ERROR - 1] + "…"
    return escaped(f"{text}\n{error.next_step}" if error.next_step else text)


def first_page(params: PaginatedRequestParams | None) -> None:
    """Refuses pagination cursors: no list of this server returns one.

    Raises:
        MCPError: There is a cursor.
    """
    if params is not None and params.cursor is not None:
        raise MCPError(INVALID_PARAMS, f"There is no cursor {shown(params.cursor)}: this list has one page.")
