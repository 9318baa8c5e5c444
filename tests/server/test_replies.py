from __future__ import annotations

import json
import re

import pytest

from nnterp_mcp.errors import BY_CODE, InvalidRequest
from nnterp_mcp.pool.faults import masked
from nnterp_mcp.server.replies import answered, refused
from nnterp_mcp.table import Table
from nnterp_mcp.toolset.logit_lens.result import LogitLensAnswer
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


UNSEEN = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u2028\u2029\u202e\u2066\u200f\ufeff\U000e0041\ud800"]


@pytest.mark.parametrize("name", UNSEEN, ids=lambda char: f"U+{ord(char):04X}")
def test_nothing_invisible_of_a_strangers_reaches_a_client(name: str) -> None:
    content = Table(columns=[f"a{name}b", "c"], rows=[[f"d{name}e", [f"f{name}g", 0.5]]])
    answer = LogitLensAnswer(
        finding=f"h{name}i.", notes=[f"j{name}k"], model=f"l{name}m", total=1, truncated=False, table=content
    )
    made, error = answered(answer), refused(InvalidRequest(f"n{name}o", f"p{name}q"))

    assert name in "\n\t" or name not in text(made) + text(error)
    assert len(text(made).splitlines()) == 4, "a table keeps its rows"
    shown = json.dumps(made.structured_content, ensure_ascii=False)
    assert name not in shown, "in data, the ends of lines stay, which JSON escapes"
