"""Trials are made once for each situation, and once for all loads where there is a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nnterp_mcp.engine.prefix_sharing import known_sharing
from nnterp_mcp.model.loading.trials import findings, forget, recall, record_trials


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "model.trials.json"


def _loaded(record: Path) -> nn.Module:
    module = nn.Linear(1, 1)
    record_trials(module, record)
    return module


def _never() -> bool:
    raise AssertionError("it was tried again")


def test_a_trial_is_made_again_for_longer_prompts_alone() -> None:
    module, tried = nn.Linear(1, 1), list[int]()

    def ask(length: int) -> bool:
        return recall(module, "kind", "situation", length, lambda: tried.append(length) or True)

    assert all(ask(length) for length in (8, 5, 8, 9, 2))
    assert tried == [8, 9]
    forget(module)
    assert ask(1)
    assert tried == [8, 9, 1]


def test_what_one_load_found_the_next_load_knows(record: Path) -> None:
    situation = ("eager", frozenset({"b", "a"}), True, 3, ())
    assert recall(_loaded(record), "kind", situation, 8, lambda: [True, False]) == [True, False]
    again = _loaded(record)
    assert recall(again, "kind", ("eager", frozenset({"a", "b"}), True, 3, ()), 7, _never) == [True, False]
    assert findings(again, "kind") == [[True, False]]
    assert recall(again, "kind", situation, 9, lambda: [False, False]) == [False, False]


def test_situations_of_more_than_plain_data_stay_with_their_model(record: Path) -> None:
    thing = object()
    module = _loaded(record)
    assert recall(module, "kind", ("operations", (thing,)), 4, lambda: True)
    assert recall(module, "kind", ("operations", (thing,)), 4, _never)
    assert json.loads(record.read_text()) == {"kind": {}}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": 3}', '{"kind": {"a": [1]}}', '{"kind": {"a": ["x", 1]}}'])
def test_a_damaged_record_counts_as_none(record: Path, text: str) -> None:
    record.write_text(text)
    module = _loaded(record)
    assert findings(module, "kind") == []
    assert recall(module, "kind", "situation", 4, lambda: True)
    assert json.loads(record.read_text())["kind"] == {'"situation"': [4, True]}


def test_a_record_that_cannot_be_written_hinders_nothing(tmp_path: Path) -> None:
    module = _loaded(tmp_path / "away" / "model.trials.json")
    assert recall(module, "kind", "situation", 4, lambda: True)
    assert recall(module, "kind", "situation", 4, _never)


def test_a_second_load_of_a_folder_tries_nothing_again(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from nnterp_mcp import Laboratory
    from nnterp_mcp.settings import Settings

    settings = Settings(cache=tmp_path / "cache", data=tmp_path / "data")

    def use() -> tuple[int, list[Any]]:
        laboratory = Laboratory(str(tiny("llama")), settings=settings)
        passes: list[None] = []
        module = laboratory.bench.model.module
        module.get_input_embeddings().register_forward_hook(lambda *_: passes.append(None))
        results = [laboratory.patchscope("The capital of France is"), laboratory.attention_probs("Spain", layers=1)]
        laboratory.generate("The capital of France is", max_new_tokens=2)
        laboratory.patch_activations("Paris is", "Spain is", targets={"a": " France", "b": " Spain"})
        assert known_sharing(module)
        return len(passes), [result.model_dump() for result in results]

    (first, expected), (second, found) = use(), use()
    assert second < first
    assert found == expected
    assert len(list((tmp_path / "cache" / "checks").glob("*.trials.json"))) == 1
