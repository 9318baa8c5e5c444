from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import BaseModel

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import Cancelled, TimedOut
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.worker.job import Job


class Count(BaseModel):
    """How many items a group has."""

    count: int


class Counts(Result):
    """Of every group."""

    counts: Sequence[Count]


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


def test_steps_inside_a_group_only_ever_move_forward() -> None:
    sent: list[Progress] = []
    job = Job(3, sent.append)

    def compute(group: Sequence[int]) -> Count:
        job.step(0.5, "half a group")
        job.step(1.0, "a group")
        return Count(count=len(group))

    result = job.in_parts([[1, 2], [3, 4, 5, 6]], Count, compute, lambda parts, taken: Counts(counts=parts), "numbers")

    assert [part.count for part in result.counts] == [2, 4]
    assert [(progress.done, progress.total) for progress in sent] == [(1, 6), (2, 6), (4, 6), (6, 6)]
    assert [progress.message for progress in sent[1:3]] == ["2 of 6 numbers", "2 of 6 numbers; half a group"]
