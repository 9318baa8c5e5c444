from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import BaseModel

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import Cancelled, TimedOut
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.worker.job import Job


class Half(BaseModel):
    """Half of an item."""

    half: float


class Halves(Result):
    """Of every item."""

    halves: Sequence[Half]


def test_progress_is_sent_until_the_call_is_cancelled() -> None:
    sent: list[Progress] = []
    job = Job(3, sent.append)
    job.progress(1, 2, "halves")
    job.stop(Cancelled("the client cancelled the call"))

    with pytest.raises(Cancelled, match="the client cancelled the call"):
        job.progress(2, 2, "halves")
    with pytest.raises(Cancelled):
        job.check()
    assert sent == [Progress(id=3, done=1, total=2, message="1 of 2 halves")]


def test_the_first_reason_to_stop_is_the_one_that_counts() -> None:
    job = Job(3, lambda progress: None)
    job.stop(TimedOut("too long"))
    job.stop(Cancelled("the client cancelled the call"))

    with pytest.raises(TimedOut, match="too long"):
        job.check()


def test_steps_inside_a_group_only_ever_move_forward() -> None:
    sent: list[Progress] = []
    job = Job(3, sent.append)

    def compute(group: Sequence[int]) -> list[Half]:
        job.progress(1, 2, "steps")
        job.progress(2, 2, "steps")
        return [Half(half=number / 2) for number in group]

    groups = [[5, 2], [1, 0, 4, 3]]
    result = job.in_parts(groups, Half, compute, lambda done: Halves(halves=done.items), "numbers")

    assert [item.half for item in result.halves] == [0, 0.5, 1, 1.5, 2, 2.5], "in the order of the numbers"
    assert [(progress.done, progress.total) for progress in sent] == [(1, 6), (2, 6), (4, 6), (6, 6)]
    assert [progress.message for progress in sent[1:3]] == ["2 of 6 numbers", "2 of 6 numbers; 1 of 2 steps"]
