from __future__ import annotations

import re

import pytest

from nnterp_mcp.errors import BY_CODE, InvalidRequest
from nnterp_mcp.server.replies import refused
from nnterp_mcp.session.faults import masked
from tests.serving import text


@pytest.mark.parametrize("code", BY_CODE)
def test_an_error_is_whole_in_the_text(code: str) -> None:
    reply = refused(BY_CODE[code]("what failed", "what to do"))

    assert reply.is_error
    assert reply.structured_content is None
    assert text(reply) == f"{code}: what failed\nwhat to do"
    assert text(refused(BY_CODE[code]("what failed"))) == f"{code}: what failed"


def test_an_error_is_small_whatever_it_quotes() -> None:
    said = text(refused(InvalidRequest("x" * 100_000, "what to do")))

    assert len(said) < 2100
    assert said.endswith("…\nwhat to do")


def test_a_fault_of_ours_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    said = text(refused(masked(KeyError("secret"))))

    found = re.match(r"internal: an unexpected KeyError in the server \(log id (\w{8})\)\n", said)
    assert found
    assert "secret" not in said
    assert f"[{found.group(1)}] KeyError" in caplog.text
    assert "secret" in caplog.text
