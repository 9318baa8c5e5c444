"""Shapes in signatures are checked in all tests, and in the processes that they start."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

shape_checks: Any = importlib.import_module("shape_checks")

CODE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from torch import Tensor
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from jaxtyping import Shaped

def product(one: Float[Tensor, "row inner"], other: Float[Tensor, "inner column"]) -> Float[Tensor, "row column"]:
    '''Multiplies.'''
    if not one.numel():
        return one
    return one @ other

def parts(
    ids: Int[Tensor, " row"] | None, states: list[Float[Tensor, " row"]], named: dict[str, Float[Tensor, " row"]]
) -> tuple[Float[Tensor, " row"], str]:
    return states[0], "named"

def unread(states: Shaped[Tensor, " row"]) -> None:
    def nested(row: Float[Tensor, ""]) -> None: ...
    return nested(states)

@dataclass(frozen=True)
class Pair:
    one: Float[Tensor, " row"]
    other: Float[Tensor, " row"]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "shaped.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    shape_checks.install("shaped")
    monkeypatch.delitem(sys.modules, "shaped", raising=False)
    return importlib.import_module("shaped")


def test_wrong_shapes_are_noticed(module: ModuleType) -> None:
    two, three, ids = torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.int64)
    assert module.product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert module.parts(None, [two, three], {"a": two}) == (two, "named")
    assert module.Pair(two, two).other is two

    for wrong, said in (
        (lambda: module.product(torch.ones(2, 3), torch.ones(2, 3)), r"other of product: torch.float32 \(2, 3\) is no"),
        (lambda: module.product(torch.ones(2, 3).long(), torch.ones(3, 4)), "one of product: torch.int64"),
        (lambda: module.product(torch.ones(0, 3), torch.ones(3, 4)), "return of product"),
        (lambda: module.parts(ids, [three], {}), "return of parts"),
        (lambda: module.parts(ids, [two, torch.ones(2, 2)], {}), "states of parts"),
        (lambda: module.parts(ids, [two], {"a": two, "b": ids}), "named of parts"),
        (lambda: module.unread(torch.ones(2, 2)), "states of unread"),
        (lambda: module.unread(two), "row of unread.<locals>.nested"),
        (lambda: module.Pair(two, three), "other of Pair"),
    ):
        with pytest.raises(shape_checks.WrongShape, match=said):
            wrong()


def test_a_checked_function_keeps_its_source(module: ModuleType) -> None:
    assert inspect.getsource(module.product) in CODE


WRONG = """
import torch
from nnterp_mcp.engine.interpreter import knock_out
knock_out(torch.ones(2, 3), {}, {})
"""


def test_the_package_is_checked_here_and_in_other_processes() -> None:
    with pytest.raises(shape_checks.WrongShape, match="value of knock_out"):
        exec(WRONG)
    ended = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, check=False)
    assert "WrongShape: value of knock_out" in ended.stderr
