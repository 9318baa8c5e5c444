"""The bar of a call of the library."""

from __future__ import annotations

import time

import pytest

from nnterp_mcp.display import progress

Captured = pytest.CaptureFixture[str]


def written(capsys: Captured, within: float = 5.0) -> str:
    """What appears on standard error."""
    begun, shown = time.monotonic(), ""
    while not shown.strip() and time.monotonic() - begun < within:
        time.sleep(0.01)
        shown += capsys.readouterr().err
    return shown


def test_a_call_that_is_over_soon_shows_nothing(capsys: Captured) -> None:
    bar = progress.ProgressBar(seen=True)
    bar.count(1, 4, "prompts")
    bar.close()
    assert not written(capsys, 0.1)


def test_a_bar_appears_without_a_report_and_follows_those_that_come(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.05)
    bar = progress.ProgressBar(seen=True)
    assert "running" in written(capsys)
    bar.count(1, 4, "prompts")
    assert "1 of 4 prompts  25% |" in written(capsys)
    bar.close()
    assert not capsys.readouterr().err.strip()


def test_nobody_is_shown_a_bar_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with progress.progress_bar() as bar:
        bar.count(1, None, "tokens")
        assert not written(capsys, 0.05)
