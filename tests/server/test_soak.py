"""A short soak: many clients at once, cancels, reconnects and killed workers."""

from __future__ import annotations

import pytest

from tests.soak.soak import soak, tiny_models


@pytest.mark.slow
def test_nothing_is_wrong_hung_or_lost_in_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    with tiny_models() as folders:
        tally = soak(20, 8, folders)

    assert not tally.failed, capsys.readouterr().out
    assert tally.counts["calls"] > 50
    assert tally.finished
