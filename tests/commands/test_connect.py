from __future__ import annotations

import pytest

from nnterp_mcp.commands.connect import endpoint
from nnterp_mcp.errors import InvalidRequest
from tests.test_cli import refusal


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://127.0.0.1:8765", "http://127.0.0.1:8765/mcp"),
        ("https://lab.example.org/", "https://lab.example.org/mcp"),
        ("https://lab.example.org/models/mcp?x=1", "https://lab.example.org/models/mcp?x=1"),
    ],
)
def test_a_root_stands_for_its_usual_path(url: str, meant: str) -> None:
    assert endpoint(url) == meant


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("lab.example.org", "'lab.example.org' is not an http:// or https:// URL."),
        ("http://", "'http://' is not an http:// or https:// URL."),
        ("http://me:secret@lab.example.org", "the URL holds a password, which other users of this machine could read."),
        ("http://127.0.0.1:8765/sse", "http://127.0.0.1:8765/sse is the server's SSE endpoint."),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        endpoint(url)
    assert raised.value.message == said
    assert raised.value.next_step
    assert "secret" not in raised.value.message + raised.value.next_step


def test_a_token_that_is_not_there_is_named() -> None:
    assert refusal("connect", "http://127.0.0.1:1", "--token-env", "LAB_TOKEN") == (
        "invalid_request: the variable LAB_TOKEN of the environment is not set.\nPut the server's token there.\n"
    )
