"""The library's names: what type checkers see is what is there, and each is loaded when it is first used."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import nnterp_mcp

STUB = ast.parse(Path(nnterp_mcp.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))


def declared() -> dict[str, str]:
    """The names that type checkers see, with the modules that they come from."""
    imports = [node for node in ast.walk(STUB) if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {name.asname or name.name: node.module or "" for node in imports for name in node.names}


@pytest.mark.parametrize("name", [name for name in dir(nnterp_mcp) if name != "__version__"])
def test_a_name_is_what_type_checkers_take_it_for(name: str) -> None:
    assert getattr(nnterp_mcp, name) is getattr(importlib.import_module(declared()[name]), name)


def test_every_name_is_listed_and_no_other_is_there() -> None:
    names = {"__version__", *(name for name, home in declared().items() if home.startswith("nnterp_mcp"))}
    exported: dict[str, object] = {}
    exec("from nnterp_mcp import *", exported)

    assert names == set(dir(nnterp_mcp)) == exported.keys() - {"__builtins__"}
    with pytest.raises(AttributeError, match="no attribute 'patchers'"):
        _ = nnterp_mcp.patchers  # pyright: ignore


def test_causes_are_at_hand() -> None:
    """Patching with the exported names alone: every position patched is the clean run."""
    from nnterp_mcp import Patcher, StandardizedTransformer, encode_prompts, make_grid, pair_prompts
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    clean, corrupted = (
        encode_prompts(model.tokenizer, [text], "it")
        for text in ("The capital of France is", "The capital of Spain is")
    )
    pairs = pair_prompts(clean, corrupted)
    grid = make_grid(model, pairs, ["layers_output"], positions={"everything": (("all",), ("all",))})
    found = Patcher(model, pairs, grid, metric="kl").patch()

    assert found.corrupted is not None
    assert float(found.corrupted) > 1e-3
    assert float(found.values.abs().max()) < 1e-5
