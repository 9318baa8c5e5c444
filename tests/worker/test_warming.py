"""Warming runs what the first calls would run, ends when a call waits, and leaves the model as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from nnterp_mcp.engine.prefix_sharing import known_sharing
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from nnterp_mcp.worker import warming
from nnterp_mcp.worker.workbench import Bench


@pytest.fixture
def bench() -> Bench:
    placed = Bench("tiny", Settings())
    placed.place(StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer()))
    return placed


def test_every_call_of_warming_is_one_that_the_tools_take(bench: Bench) -> None:
    ended: list[str] = []
    for tool, arguments in warming._CALLS.items():
        job = warming._Warming(0, lambda progress: None, until=float("inf"))
        warming._call(bench, tool, arguments, job)
        ended.append(tool)
    assert ended == list(warming._CALLS)


def test_warming_finds_what_is_found_once_and_leaves_the_model_as_it_was(bench: Bench) -> None:
    module, ids = bench.model.module, torch.arange(1, 9)[None]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    attention, before = bench.model.attention, module(input_ids=ids).logits

    warming.warm(warming.warming_steps(bench), waiting=lambda: False)

    assert known_sharing(module)
    assert bench.model.attention == attention
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    assert torch.equal(module(input_ids=ids).logits, before)


@pytest.mark.parametrize("layers", [0, 1, 3, 7])
def test_warming_ends_before_the_next_layer_when_a_call_waits(bench: Bench, layers: int) -> None:
    ran: list[int] = []
    for layer in bench.model.anatomy.layers:
        layer.block.module.register_forward_hook(lambda *_: ran.append(1))
    warming.warm(warming.warming_steps(bench), waiting=lambda: len(ran) >= layers)
    assert len(ran) == layers


def test_a_tool_that_fails_hides_nothing_and_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def fail(bench: Bench, spec: object, params: object, job: object) -> Callable[[], None]:
        called.append(getattr(spec, "name", ""))
        raise NnterpError("no")

    monkeypatch.setattr(warming, "run_tool", fail)
    warming.warm(warming.warming_steps(bench), waiting=lambda: False)
    assert called == list(warming._CALLS)
    assert set(called) <= set(specs())


def test_the_garbage_collector_is_spared_what_lives_as_long_as_the_process() -> None:
    script = """
import gc, sys
from nnterp_mcp.worker.warming import import_libraries
import_libraries()
frozen = gc.get_freeze_count()
import_libraries()
print(gc.isenabled(), frozen == gc.get_freeze_count(), frozen, len(gc.get_objects()), "sklearn" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    enabled, once, frozen, collected, probes = said
    assert (enabled, once, probes) == ("True", "True", "False")
    assert int(frozen) > 100 * int(collected)
