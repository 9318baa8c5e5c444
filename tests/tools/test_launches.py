"""Launches are operations that compute; views are none, and numbers that the host reads are waited for."""

from __future__ import annotations

import torch

from tools.launches import Launches, count


def test_what_is_launched_is_counted_with_its_bytes() -> None:
    a, b = torch.ones(8, 8), torch.ones(8, 8)
    assert count(lambda: a @ b) == Launches(1, 0, 3 * 256)
    assert count(lambda: (a.T.reshape(64)[:8], a[0])).waits == 0
    assert count(lambda: a.T.view(8, 8) if a.T.is_contiguous() else a[0]) == Launches()


def test_numbers_that_the_host_reads_are_waited_for() -> None:
    a = torch.ones(4)
    assert count(lambda: float(a.sum())) == Launches(2, 1, 16 + 4 + 4)
    assert count(lambda: a[a > 0]).waits == 1


def test_one_step_is_the_difference_of_two_runs() -> None:
    a = torch.ones(4)
    assert count(lambda: [a + 1 for _ in range(5)]) - count(lambda: [a + 1 for _ in range(3)]) == Launches(2, 0, 64)
