"""When something is captured, when it is replayed, and what happens where it cannot be.

The graphs themselves need a card.
Here a stand-in for a graph computes anew at each replay, as a graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.engine.executors import short_passes
from nnterp_mcp.engine.executors.capture import captures, reasons_against, refuse, try_capture
from nnterp_mcp.engine.executors.short_passes import ShortPasses
from nnterp_mcp.errors import Cancelled


def _model(**attributes: Any) -> Any:
    module = nn.Linear(2, 2)
    for name, value in attributes.items():
        setattr(module, name, value)
    module.dtype = torch.float32
    return SimpleNamespace(module=module, device=torch.device("cuda"), name="model")


class _Graph:
    error: Exception | None = None
    off = 0.0

    def __init__(self, compute: Callable[[], Sequence[Tensor]], pool: object = None) -> None:
        if self.error is not None:
            raise self.error
        self._compute = compute

    def replay(self) -> Sequence[Tensor]:
        return [value + self.off for value in self._compute()]


def _double(buffers: Mapping[str, Tensor]) -> list[Tensor]:
    return [buffers["x"] * 2]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> type[_Graph]:
    made = type("Graph", (_Graph,), {})
    monkeypatch.setattr(short_passes, "LaunchGraph", made)
    monkeypatch.setattr(ShortPasses, "_shared_pool", lambda passes: None)
    return made


def _run(passes: ShortPasses, model: Any, values: Sequence[float]) -> list[float]:
    (found,) = passes.run(model, "key", {"x": torch.tensor(values)}, _double)
    return found.tolist()


def test_a_shape_is_captured_the_second_time_and_then_replayed(graph: type[_Graph]) -> None:
    model, passes = _model(), ShortPasses()
    with patch.object(graph, "replay", autospec=True, side_effect=graph.replay) as replayed:
        assert _run(passes, model, [1.0, 2.0]) == [2.0, 4.0]
        assert replayed.call_count == 0
        assert _run(passes, model, [3.0, 4.0]) == [6.0, 8.0]
        assert replayed.call_count == 1  # compared with the pass itself
        assert _run(passes, model, [5.0, 6.0]) == [10.0, 12.0]
        assert replayed.call_count == 2
        assert _run(passes, model, [5.0]) == [10.0]  # another shape
        assert replayed.call_count == 2
    assert reasons_against(model) == {}


def test_a_replay_that_differs_is_not_used(graph: type[_Graph]) -> None:
    model, passes = _model(), ShortPasses()
    graph.off = 1.0
    assert [_run(passes, model, [value]) for value in (1.0, 2.0)] == [[2.0], [4.0]]
    assert reasons_against(model) == {"short passes": "a replay differs from the pass itself"}
    assert not captures(model, "short passes")
    assert captures(model, "decode steps")


def test_code_that_cannot_be_captured_runs_as_it_is(graph: type[_Graph]) -> None:
    model, passes = _model(), ShortPasses()
    graph.error = RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
    assert [_run(passes, model, [value]) for value in (1.0, 2.0, 3.0)] == [[2.0], [4.0], [6.0]]
    assert reasons_against(model) == {"short passes": "operation not permitted when stream is capturing"}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), Cancelled("the call was cancelled")])
def test_memory_that_runs_out_and_a_call_that_is_stopped_say_nothing_about_a_model(error: Exception) -> None:
    model = _model()

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        try_capture(model, "short passes", fail)
    assert captures(model, "short passes")


def test_infinite_and_missing_numbers_agree_with_themselves(graph: type[_Graph]) -> None:
    model, passes = _model(), ShortPasses()
    for _ in range(3):
        found = _run(passes, model, [float("inf"), float("nan"), 1.0])
        assert found[0] == float("inf")
        assert found[2] == 2.0
    assert reasons_against(model) == {}


def test_a_model_on_several_devices_or_none_that_captures_is_left_alone() -> None:
    assert captures(_model(hf_device_map={"a": 0, "b": 0}), "short passes")
    assert not captures(_model(hf_device_map={"a": 0, "b": 1}), "short passes")
    model = _model()
    model.device = torch.device("cpu")
    assert not captures(model, "short passes")
    refuse(model, "short passes", "")
    assert reasons_against(model) == {"short passes": "no reason given"}
