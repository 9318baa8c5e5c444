"""Loads that meet, wait, fail and are given up; calls and unloads that cross them. Several clients, one server."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.serving import Caller, HttpServer, ended, http, stdio, text, until


@pytest.fixture(scope="module")
def server() -> Generator[HttpServer]:
    with http(batch_tokens=1) as started:
        yield started


@pytest.fixture(scope="module")
def one(server: HttpServer) -> Generator[Caller]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def other(server: HttpServer) -> Generator[Caller]:
    with server.client("sse") as client:
        yield client


@pytest.fixture
def llama(tiny: Callable[..., Path]) -> str:
    return str(tiny("llama"))


@pytest.fixture
def gpt2(tiny: Callable[..., Path]) -> str:
    return str(tiny("gpt2"))


def load(caller: Caller, folder: str) -> None:
    loaded = caller.call("load_model", model=folder)
    assert not loaded.is_error, text(loaded)


def begun(said: list[str | None]) -> Callable[[float, float | None, str | None], None]:
    return lambda done, total, message: said.append(message)


def test_equal_loads_join_and_one_that_leaves_does_not_end_the_others(one: Caller, other: Caller, llama: str) -> None:
    said: dict[str, list[str | None]] = {"first": [], "second": [], "leaving": []}
    first = one.begin("load_model", begun(said["first"]), model=llama)
    until(lambda: said["first"])
    second = other.begin("load_model", begun(said["second"]), model=llama)
    leaving = one.begin("load_model", begun(said["leaving"]), model=llama)
    assert text(other.call("tokenize", prompts="a")) == (
        "no_model: tiny-llama is still loading\nWait for load_model to answer, then call again."
    )
    assert other.call("session").structured_content["models"]["rows"][0][:3] == ["tiny-llama", llama, "loading"]
    leaving.cancel()

    assert first.result(120).structured_content["model"] == "tiny-llama"
    assert second.result(120).structured_content["model"] == "tiny-llama"
    assert said["second"]
    assert len(one.workers()) == 1
    assert text(other.call("load_model", model=llama)).startswith("tiny-llama was loaded already; ")


def test_a_load_that_is_cancelled_ends_its_process(one: Caller, other: Caller, gpt2: str) -> None:
    before = one.workers()
    said: list[str | None] = []
    loading = one.begin("load_model", begun(said), model=gpt2)
    until(lambda: said)
    (started,) = [worker for worker in one.workers() if worker not in before]
    loading.cancel()

    assert ended([started], within=5)
    assert text(other.call("tokenize", prompts="a", model="tiny-gpt2")).startswith(
        "stale_handle: 'tiny-gpt2' is gone: its load was cancelled"
    )
    assert "ready" in text(other.call("session"))


def test_a_load_that_is_unloaded_is_told(one: Caller, other: Caller, gpt2: str) -> None:
    said: list[str | None] = []
    loading = one.begin("load_model", begun(said), model=gpt2)
    until(lambda: said)
    other.call("unload_model", model="tiny-gpt2")

    assert text(loading.result(30)) == (
        "cancelled: the load of tiny-gpt2 was ended: it was unloaded\nCall load_model again."
    )


def test_a_cancelled_call_stops_and_the_next_one_runs(one: Caller, llama: str) -> None:
    load(one, llama)
    said: list[str | None] = []
    call = one.begin("logit_lens", begun(said), prompts=["a b c"] * 1000, model="tiny-llama")
    until(lambda: len(said) > 3)
    call.cancel()

    assert not one.call("tokenize", prompts="a", model="tiny-llama").is_error
    count = len(said)
    assert not one.call("tokenize", prompts="a", model="tiny-llama").is_error
    assert len(said) == count < 1000
    until(lambda: "tool=logit_lens outcome=cancelled" in one.log.read_text(), within=5)


def test_calls_queue_and_each_gets_its_answer(one: Caller, other: Caller, llama: str) -> None:
    load(one, llama)
    long = one.begin("logit_lens", prompts=["a b c"] * 50, model="tiny-llama")
    short = other.begin("logit_lens", prompts="d", model="tiny-llama")

    assert long.result(60).structured_content["total"] == 50
    assert short.result(60).structured_content["total"] == 1


def test_a_call_whose_model_is_unloaded_is_told(one: Caller, other: Caller, llama: str) -> None:
    load(one, llama)
    said: list[str | None] = []
    call = one.begin("logit_lens", begun(said), prompts=["a b c"] * 1000, model="tiny-llama")
    until(lambda: said)
    (worker,) = one.workers()
    unloaded = other.call("unload_model", model="tiny-llama")

    assert "tiny-llama is unloaded" in text(unloaded)
    assert ended([worker], within=5)
    assert text(call.result(30)) == "worker_lost: tiny-llama is gone: it was unloaded\nCall load_model again."
    assert text(one.call("tokenize", prompts="a")).startswith("no_model: no model is loaded (tiny-llama is gone: ")


def test_a_load_that_takes_too_long_is_given_up(gpt2: str) -> None:
    with stdio(load_timeout=1) as client:
        refused = client.call("load_model", model=gpt2)

        assert text(refused) == "timed_out: tiny-gpt2 was not loaded within 1 s and was given up"
        until(lambda: not client.workers(), within=5)
        assert "0 models loaded" in text(client.call("session"))
