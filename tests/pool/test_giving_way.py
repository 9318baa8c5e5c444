"""Short calls next to a long one: they run between its groups, and neither changes the other's numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Caller, http, text, until

LONG = {"prompts": ["a b " * 20 + str(number % 7) for number in range(150)]}


@pytest.fixture(scope="module")
def clients(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Caller, Caller]]:
    """Two clients of one server, whose batches hold one prompt."""
    data = tmp_path_factory.mktemp("data")
    with http(batch_tokens=1, data=data) as server, server.client() as one, server.client() as other:
        until(lambda: "still loading" not in text(one.call("load_model", model=str(tiny("llama")))))
        yield one, other


def rows(client: Caller, run_id: str, **where: Any) -> list[Any]:
    page = client.call("read_run", run_id=run_id, part="readings.layers", where=where, limit=500, format="json")
    return page.structured_content["table"]["rows"]


def test_a_short_call_runs_between_the_groups_of_a_long_one(clients: tuple[Caller, Caller]) -> None:
    one, other = clients
    alone = one.call("logit_lens", prompts="c d").structured_content
    said: list[float] = []
    long = one.begin("logit_lens", lambda *progress: said.append(progress[0]), **LONG)
    until(lambda: said)
    short = other.call("logit_lens", prompts="c d").structured_content
    assert not long.done(), "the short call came first"
    third = other.call("logit_lens", prompts="c d").structured_content
    assert not long.done()
    whole = long.result(120).structured_content

    assert {**short, "run_id": ""} == {**third, "run_id": ""} == {**alone, "run_id": ""}
    assert rows(other, short["run_id"]) == rows(other, alone["run_id"])
    again = one.call("logit_lens", **LONG).structured_content
    assert {**again, "run_id": ""} == {**whole, "run_id": ""}
    assert rows(one, again["run_id"], prompt=[3, 75, 149]) == rows(one, whole["run_id"], prompt=[3, 75, 149])


def test_a_long_call_that_is_cancelled_while_others_run_ends(clients: tuple[Caller, Caller]) -> None:
    one, other = clients
    said: list[float] = []
    first = one.begin("logit_lens", lambda *progress: said.append(progress[0]), **LONG)
    until(lambda: said)
    second = other.begin("logit_lens", lambda *progress: None, **LONG)
    time.sleep(0.5)
    first.cancel()
    assert not second.result(120).is_error

    def states() -> set[str]:
        return {row[2] for row in one.call("session").structured_content["runs"]["rows"][:2]}

    until(lambda: states() == {"done", "cancelled"})
    assert not one.call("logit_lens", prompts="a").is_error


def test_what_runs_no_pass_waits_for_none(clients: tuple[Caller, Caller]) -> None:
    one, other = clients
    said: list[float] = []
    # One group, which gives way to nobody.
    texts = {"clean": ["a b c d e f g h"] * 20, "corrupted": ["a c c d e f g i"] * 20}
    asked = texts | {"targets": {"x": ["a"], "y": ["b"]}}
    long = one.begin("patch_activations", lambda *progress: said.append(progress[0]), **asked)
    until(lambda: said)
    seconds: list[float] = []
    for _ in range(5):
        begun = time.monotonic()
        assert not other.call("tokenize", prompts="a b").is_error
        assert not other.call("inspect_model").is_error
        seconds.append(time.monotonic() - begun)
    assert not long.done()
    assert not long.result(120).is_error
    assert min(seconds) < 1
