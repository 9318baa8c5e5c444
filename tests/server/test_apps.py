"""The viewer as an MCP App, over a real client."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from nnterp_mcp.viewer.page import page, viewed_tools
from tests.serving import Caller, stdio

VIEWER = "ui://nnterp/viewer.html"


@pytest.fixture(scope="module")
def client() -> Generator[Caller]:
    with stdio() as caller:
        yield caller


def test_tools_that_have_something_to_see_name_the_page(client: Caller) -> None:
    named = {tool.name: tool.meta for tool in client.tools() if tool.meta is not None}

    assert set(named) == viewed_tools()
    assert all(meta == {"ui": {"resourceUri": VIEWER}} for meta in named.values())


def test_the_page_is_a_resource(client: Caller) -> None:
    (content,) = client.read(VIEWER).contents

    assert content.uri == VIEWER
    assert content.mime_type == "text/html;profile=mcp-app"
    assert content.text == page("host")
    assert set(content.meta["ui"]) == {"prefersBorder"}  # no domains, no permissions


def test_the_server_says_that_it_knows_apps(client: Caller) -> None:
    assert (client.extensions or {})["io.modelcontextprotocol/ui"] == {}
