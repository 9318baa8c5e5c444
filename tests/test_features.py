"""docs/features.md: what the walkthroughs of nnterp and nnsight show has a way here, and the way leads there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from tests.features import FEATURES, PAGE, Ground, read_page
from tests.serving import Caller, stdio

if TYPE_CHECKING:
    from nnterp_mcp.laboratory import Laboratory

for module in ("experiments", "names", "passes", "steps"):
    importlib.import_module(f"tests.features.{module}")

ROWS = read_page()


@pytest.fixture(scope="module")
def lab(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    import torch

    from nnterp_mcp import Laboratory

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = Settings(data=tmp_path_factory.mktemp("data"))
    yield Laboratory(str(tiny("llama")), dtype="float32", settings=settings)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client(tiny: Callable[..., Path]) -> Iterator[Caller]:
    with stdio() as caller:
        assert not caller.call("load_model", model=str(tiny("llama"))).is_error
        yield caller


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_is_so(name: str, lab: Laboratory, request: pytest.FixtureRequest) -> None:
    from nnterp_mcp.verification.tiny import tiny_model
    from tests.engine.plain import LLAMA, Plain

    assert name in FEATURES, "the row has no test"
    plain = Plain(tiny_model("llama"), LLAMA)
    FEATURES[name](Ground(lab, plain, ROWS[name], lambda: request.getfixturevalue("client")))


def test_every_test_belongs_to_a_row() -> None:
    assert FEATURES.keys() <= ROWS.keys()
    assert PAGE.read_text(encoding="utf-8").count("\n| `") == len(ROWS) > 40


def test_every_call_on_the_page_is_one_that_its_tool_takes() -> None:
    calls = [call for of_row in ROWS.values() for call in of_row]

    assert len(calls) > 30
    for call in calls:
        specs()[call.tool].parse(call.arguments)
