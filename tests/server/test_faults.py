"""Every fault of `tests.faults` on a real server: what the client sees, the next call, and the finished runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.faults import FAULTS
from tests.faults.scene import Fault, Scenes, expected, inject


@pytest.fixture(scope="module")
def scenes(tiny: Callable[..., Path]) -> Generator[Scenes]:
    """Servers, one after another; faults that ask for equal ones in a row share one."""
    shared = Scenes(tiny)
    yield shared
    shared.close()


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.name, marks=[pytest.mark.slow] if fault.slow else []) for fault in FAULTS],
)
def test_a_fault_costs_no_more_than_it_must(fault: Fault, scenes: Scenes) -> None:
    reason = fault.needs()
    if reason is not None:
        pytest.skip(reason)
    with scenes.scene(fault) as scene:
        outcome = inject(fault, scene)

        assert expected(fault, outcome), outcome
