"""The import hook of `tests.shapes` notices wrong shapes, and is installed in the tests."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import shapes

CODE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped

def product(one: Float[Tensor, "row inner"], other: Float[Tensor, "inner column"]) -> Float[Tensor, "row column"]:
    return one @ other if one.numel() else one

def optional(
    ids: Int[Tensor, " row"] | None, states: list[Float[Tensor, " row"]], named: dict[str, Float[Tensor, " row"]]
):
    return "run"

def unread(states: Shaped[Tensor, " row"]): ...

@dataclass
class Pair:
    one: Float[Tensor, " row"]
    other: Float[Tensor, " row"]

    @classmethod
    def of(cls, one: Float[Tensor, " row"]) -> Pair:
        return cls(one, one)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "shaped.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(shapes, "PACKAGE", "shaped")
    remove = shapes.install()
    yield importlib.import_module("shaped")
    remove()
    del sys.modules["shaped"]


def test_wrong_shapes_are_noticed(module: ModuleType) -> None:
    two, three, ids = torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.int64)
    assert module.product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert module.optional(None, [two, two], {"a": two}) == module.optional(ids, [two, three], {}) == "run"
    assert module.Pair.of(two).other is two
    module.unread(torch.ones(2, 2))  # its annotation is for type checkers alone

    for wrong in (
        lambda: module.product(torch.ones(2, 3), torch.ones(2, 3)),
        lambda: module.product(torch.ones(0, 3), torch.ones(3, 4)),
        lambda: module.product(torch.ones(2, 3, dtype=torch.int64), torch.ones(3, 4)),
        lambda: module.optional(ids, [two, torch.ones(2, 2)], {}),
        lambda: module.optional(ids, [], {"a": two, "b": ids}),
        lambda: module.Pair(two, three),
        lambda: module.Pair.of(torch.ones(2, 2)),
    ):
        with pytest.raises(TypeError, match=" is no "):
            wrong()


def test_the_packages_functions_are_checked() -> None:
    from nnterp_mcp.engine.interpreter import knock_out, mask_scores
    from nnterp_mcp.model.standardized import StandardizedTransformer

    assert isinstance(mask_scores, shapes.Checked)
    assert isinstance(StandardizedTransformer.project_on_vocab, shapes.Checked)
    with pytest.raises(TypeError, match="value of knock_out"):
        knock_out(torch.ones(2, 3), {}, {})


def test_a_function_that_is_sent_is_not_checked(module: ModuleType) -> None:
    make, (functions,) = module.product.__reduce__()

    assert make(functions)(torch.ones(0, 3), torch.ones(3, 4)).shape == (0, 3)
    assert pickle.dumps(make)
