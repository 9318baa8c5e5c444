"""The count of what passed and failed in nnterp's own tests."""

from __future__ import annotations

from pathlib import Path

from tools.nnterp_tests import summarize

REPORT = """<testsuites><testsuite>
<testcase name="test_a[gpt2]"/>
<testcase name="test_b[gpt2]"><failure message="ValueError: gpt2 has no part&#10;more"/></testcase>
<testcase name="test_b[llama]"><failure message="ValueError: Maykeye/TinyLLama-v0 has no part"/></testcase>
<testcase name="test_c[gpt2]"><failure message="  File &quot;test.py&quot;, line 3&#10;SyntaxError: here"/></testcase>
<testcase name="test_d[gpt2]"><skipped message="not now"/></testcase>
</testsuite></testsuites>"""


def test_failures_of_one_kind_are_one_line(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT, encoding="utf-8")
    assert summarize(report).splitlines() == [
        "3 failed, 1 passed, 1 skipped",
        "   2 failed  test_b: ValueError: MODEL has no part",
        "   1 failed  test_c: SyntaxError: here",
        "   1 skipped  test_d: not now",
    ]
