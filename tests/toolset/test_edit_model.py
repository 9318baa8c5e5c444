"""Edits that stay in force: for every client, in every answer and record, until they are cleared."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Caller, http, text

EDIT = {"op": "zero", "site": "mlps_output", "layers": [1]}


@pytest.fixture(scope="module")
def callers(tiny: Callable[..., Path]) -> Generator[tuple[Caller, Caller]]:
    with http() as server, server.client() as one, server.client("sse") as other:
        assert not one.call("load_model", model=str(tiny("llama"))).is_error
        yield one, other


def lens(caller: Caller, **arguments: Any) -> Any:
    answer = caller.call("logit_lens", prompts="a b c", **arguments)
    assert not answer.is_error, text(answer)
    return answer.structured_content


def test_an_edit_acts_in_every_call_of_every_client_until_it_is_cleared(callers: tuple[Caller, Caller]) -> None:
    one, other = callers
    plain, once = lens(one), lens(one, interventions=[EDIT])
    assert plain["table"] != once["table"]

    edited = one.call("edit_model", interventions=[EDIT])
    assert text(edited) == (
        "1 edit active on tiny-llama, in every call of every client until cleared.\n"
        "zero at mlps_output, layer 1, all positions, every step"
    )
    for caller in callers:
        found = lens(caller)
        assert found["table"] == once["table"]
        assert found["notes"] == once["notes"]
        assert any("zero at mlps_output, layer 1, all positions, every step" in note for note in found["notes"])
    assert "Active on tiny-llama in every call: zero at mlps_output, layer 1, all positions, every step." in text(
        other.call("session")
    )

    twice = lens(other, interventions=[{"op": "skip", "layers": 2}])
    record = other.call("read_run", run_id=twice["run_id"], part="record", where={"field": "interventions"}, limit=50)
    assert "mlps_output" in text(record)
    assert "skip" in text(record)

    assert text(other.call("edit_model", interventions=[])) == "No edits are active on tiny-llama."
    assert lens(one)["table"] == plain["table"]
    assert "Active on" not in text(one.call("session"))


def test_an_edit_that_the_model_cannot_take_is_refused_and_changes_nothing(callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    plain = lens(one)
    refused = one.call("edit_model", interventions=[EDIT | {"layers": [99]}])
    assert text(refused).startswith("invalid_request: layer 99 does not exist: tiny-llama has layers 0 to 3")
    assert lens(one)["table"] == plain["table"]


def test_positions_are_meant_in_each_later_prompt(callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    at_end = EDIT | {"positions": {"text": "c"}}
    expected = lens(one, interventions=[at_end])
    assert not one.call("edit_model", interventions=[at_end]).is_error
    try:
        assert lens(one)["table"] == expected["table"]
        assert "occurrence 0 of 'c' does not exist" in text(one.call("logit_lens", prompts="a b"))
    finally:
        one.call("edit_model", interventions=[])


def test_prompts_and_matrices_are_meant_in_each_later_call(callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    second = EDIT | {"prompts": 1}
    matrix = {"op": "set_attention", "layers": 1, "pattern": [[1.0, 0.0], [0.5, 0.5]], "prompts": 1}
    asked: dict[str, Any] = {"prompts": ["a b c", "d"], "layers": -1}
    expected = one.call("logit_lens", **asked, interventions=[second, matrix])
    assert not expected.is_error, text(expected)
    edited = one.call("edit_model", interventions=[second, matrix])
    assert not edited.is_error, text(edited)
    try:
        found = one.call("logit_lens", **asked)
        assert not found.is_error, text(found)
        assert text(found).splitlines()[:-1] == text(expected).splitlines()[:-1], "all but the run's id"
        assert "prompt 1 does not exist: the request has prompts 0 to 0" in text(one.call("logit_lens", prompts="a"))
    finally:
        one.call("edit_model", interventions=[])


def test_a_tool_without_interventions_does_not_run_on_an_edited_model(callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    one.call("edit_model", interventions=[EDIT])
    try:
        refused = one.call("train_probe", prompts={"a": ["x", "y"], "b": ["z", "w"]}, folds=2)
    finally:
        one.call("edit_model", interventions=[])
    assert text(refused) == (
        "unsupported: train_probe takes no interventions, and tiny-llama has active edits: "
        "zero at mlps_output, layer 1, all positions, every step\nClear them with edit_model (interventions: []) first."
    )


def test_vectors_are_made_of_states_of_the_edited_model(callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    made: list[str] = []
    for edits in ([], [EDIT]):
        one.call("edit_model", interventions=edits)
        try:
            answer = one.call("make_vector", name="joy", method="activation", positive="a b", layers=2)
        finally:
            one.call("edit_model", interventions=[])
        made.append(text(answer))
    assert "Active interventions: zero at mlps_output, layer 1" in made[1]
    assert made[0].splitlines()[0] != made[1].splitlines()[0], "another norm"


def test_a_method_that_takes_none_names_the_edits_that_nobody_sent(callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    asked: dict[str, Any] = {"prompts": "a b", "targets": {"x": "c"}, "method": "patching", "corrupted": "a c"}
    one.call("edit_model", interventions=[EDIT])
    try:
        refused = one.call("attribute", **asked)
    finally:
        one.call("edit_model", interventions=[])
    assert text(refused) == (
        "unsupported: method patching takes no interventions: direct, gradient and integrated do, and tiny-llama has "
        "active edits: zero at mlps_output, layer 1, all positions, every step\n"
        "Clear them with edit_model (interventions: []) first."
    )
    assert "invalid_request" in text(one.call("attribute", **asked, interventions=[EDIT])), "its own are another matter"


@pytest.mark.slow
def test_unloading_ends_the_edits(callers: tuple[Caller, Caller], tiny: Callable[..., Path]) -> None:
    one, _ = callers
    plain = lens(one)
    one.call("edit_model", interventions=[EDIT])
    one.call("unload_model")
    assert not one.call("load_model", model=str(tiny("llama"))).is_error
    assert lens(one)["table"] == plain["table"]
