from __future__ import annotations

import pytest

from nnterp_mcp.errors import Cancelled, TimedOut
from nnterp_mcp.session.jobs import Job
from nnterp_mcp.session.wire import Progress


def test_progress_is_sent_until_the_call_is_cancelled() -> None:
    sent: list[Progress] = []
    job = Job(3, sent.append)
    job.progress(1, 2, "half")
    job.stop(Cancelled("the client cancelled the call"))

    with pytest.raises(Cancelled, match="the client cancelled the call"):
        job.progress(2, 2, "all")
    with pytest.raises(Cancelled):
        job.check()
    assert sent == [Progress(id=3, done=1, total=2, message="half")]


def test_the_first_reason_to_stop_is_the_one_that_counts() -> None:
    job = Job(3, lambda progress: None)
    job.stop(TimedOut("too long"))
    job.stop(Cancelled("the client cancelled the call"))

    with pytest.raises(TimedOut, match="too long"):
        job.check()
