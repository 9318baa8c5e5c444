"""The bar of a call of the library."""

from __future__ import annotations

import pytest

from nnterp_mcp.display import progress


def test_a_bar_is_shown_once_a_call_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 3600.0)
    short = progress.ProgressBar(seen=True)
    short.count(1, 4, "prompts")
    short.close()
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(progress, "DELAY", 0.0)
    long = progress.ProgressBar(seen=True)
    long.count(1, 4, "prompts")
    shown = capsys.readouterr().err
    long.close()
    assert "1 of 4 prompts  25% |" in shown
    assert not capsys.readouterr().err.strip()


def test_nobody_is_shown_a_bar_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with progress.progress_bar() as bar:
        bar.count(1, None, "tokens")
    assert capsys.readouterr().err == ""
