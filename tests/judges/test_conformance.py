"""The protocol's own conformance suite, in both of its eras.

Much of it needs tools, prompts and resources of the suite's own test server; what does not apply stands in a file for
each era, with the reason. A scenario that fails and is not listed there fails the test, and so does one that is listed
and passes.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.judges.conftest import Run
from tests.serving import HttpServer, http

SUITE = "@modelcontextprotocol/conformance/dist/index.js"


@pytest.fixture(scope="module")
def server() -> Generator[HttpServer]:
    with http(max_requests_per_minute=1_000_000) as started:
        yield started


@pytest.mark.parametrize("era", ["2025-11-25", "2026-07-28"])
def test_what_applies_is_kept_to(era: str, judge: Run, server: HttpServer, tmp_path: Path) -> None:
    baseline = Path(__file__).with_name(f"conformance-{era}.yml")
    given = ("--requirements", era, "--expected-failures", str(baseline), "-o", str(tmp_path))

    done = judge(SUITE, "server", "--url", f"{server.address}/mcp", *given)

    print(done.stdout[done.stdout.rfind("=== SUMMARY") :])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
