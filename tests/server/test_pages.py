"""Lists that fit one page take no cursor: a client that sends one is told, and does not read the same page again."""

from __future__ import annotations

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from tests.serving import stdio


def test_no_list_goes_on_from_a_cursor() -> None:
    with stdio() as caller:
        for lists in ("list_tools", "list_resources", "list_resource_templates", "list_prompts"):
            assert caller.ask(lists)
            with pytest.raises(MCPError, match="There is no cursor 'next': this list has one page") as raised:
                caller.ask(lists, cursor="next")
            assert raised.value.error.code == INVALID_PARAMS
