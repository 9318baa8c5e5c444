from __future__ import annotations

import re

import pytest
import torch

from nnterp_mcp.errors import NoModel
from nnterp_mcp.session.bench import Bench
from nnterp_mcp.session.worker import _translate
from nnterp_mcp.settings import Settings


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
)
def test_memory_that_ran_out(error: Exception) -> None:
    translated = _translate(error)

    assert translated.code == "out_of_memory"
    assert translated.message == "the call did not fit the memory"


def test_a_fault_of_ours_stays_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("secret")
    except KeyError as error:
        translated = _translate(error)

    found = re.fullmatch(r"an unexpected KeyError in the worker \(log id (\w{8})\)", translated.message)
    assert found
    log = capfd.readouterr().err
    assert f"[{found.group(1)}]" in log
    assert "KeyError: 'secret'" in log


def test_an_empty_bench_says_so() -> None:
    with pytest.raises(NoModel, match="tiny is not loaded yet"):
        _ = Bench("tiny", Settings()).model
