"""Runs that are ended by their client, by another one, and by a client that hangs up."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.runs.store import RunStore
from tests.serving import Caller, HttpServer, http, text, until

LONG = {"prompts": ["a b " * 50] * 1000}
"""A call of some seconds where a batch holds one prompt."""

LONG_CALLS = {
    "logit_lens": LONG,
    "generate": LONG | {"max_new_tokens": 8},
    "patchscope": {"source_prompts": ["a b"] * 200, "max_new_tokens": 8},
}

PARTS = {"logit_lens": "readings", "generate": "texts", "patchscope": "sources"}
"""Where a result holds what was finished."""

FINISHED = re.compile(r"[1-9]\d* of \d+ (prompts|sources)")
"""The progress of a call that has finished something."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def store(data: Path) -> RunStore:
    return RunStore(data / "runs")


@pytest.fixture(scope="module")
def server(tiny: Callable[..., Path], data: Path) -> Generator[HttpServer]:
    with http(reply_within=1, batch_tokens=1, data=data) as started, started.client() as first:
        until(lambda: "still loading" not in text(first.call("load_model", model=str(tiny("llama")))))
        yield started


@pytest.fixture
def client(server: HttpServer) -> Generator[Caller]:
    with server.client() as caller:
        yield caller


def begin(client: Caller, tool: str = "logit_lens") -> str:
    """A run that has told its client that it goes on."""
    late = client.call(tool, **LONG_CALLS[tool]).structured_content
    assert late["state"] in ("queued", "running")
    return late["run_id"]


def cancel(client: Caller, run_id: str) -> dict[str, Any]:
    result = client.call("cancel_run", run_id=run_id)
    assert not result.is_error, text(result)
    return result.structured_content


@pytest.mark.parametrize("tool", LONG_CALLS)
def test_a_run_that_computes_ends_before_its_next_batch_and_keeps_what_it_had(
    tool: str, client: Caller, store: RunStore
) -> None:
    run = begin(client, tool)
    until(
        lambda: FINISHED.match(
            client.call("read_run", run_id=run, wait_seconds=0).structured_content.get("progress", "")
        )
    )
    begun = time.monotonic()
    answer = cancel(client, run)
    assert time.monotonic() - begun < 5
    record = store.read(run)

    assert answer["finding"] == f"{run} is cancelled."
    assert answer["notes"] == ["What it had finished is kept: read_run shows it."]
    assert (record.state, record.partial) == ("cancelled", True)
    part = client.call("read_run", run_id=run)
    assert not part.is_error
    assert any(
        note == f"Partial, for the run did not finish (cancelled): {run} was cancelled."
        for note in part.structured_content["notes"]
    )
    (prompts,) = (value for value in LONG_CALLS[tool].values() if isinstance(value, list))
    assert 0 < len(json.loads(store.read_result(record))[PARTS[tool]]) < len(prompts)
    assert not client.call("logit_lens", prompts="a").is_error, "the model is free"


def test_a_run_that_waits_ends_at_once_and_the_others_go_on(client: Caller, store: RunStore) -> None:
    # The first computes no groups, between which it would give way.
    texts = {"clean": ["a b c d e f g h"] * 500, "corrupted": ["a c c d e f g i"] * 500}
    targets = {"x": ["a"], "y": ["b"]}
    running = client.call("patch_activations", **texts, targets=targets).structured_content["run_id"]
    waiting, last = begin(client), begin(client)

    def read_states() -> dict[str, str]:
        return {row[0]: row[2] for row in client.call("session").structured_content["runs"]["rows"]}

    until(lambda: read_states()[running].startswith("running"))
    states = read_states()
    assert states[waiting] == "queued: waiting for tiny-llama: 1 call comes first"
    assert states[last] == "queued: waiting for tiny-llama: 2 calls come first"

    assert cancel(client, waiting)["finding"] == f"{waiting} is cancelled."
    assert store.read(waiting).state == "cancelled"
    assert store.read(running).state == store.read(last).state == "running"
    assert read_states()[last] == "queued: waiting for tiny-llama: 1 call comes first"
    assert "was cancelled" in text(client.call("read_run", run_id=waiting))
    for run in (last, running):
        cancel(client, run)
    assert cancel(client, waiting)["finding"] == f"{waiting} had already ended (cancelled)."


def test_a_run_that_is_done_stays_as_it_is(client: Caller) -> None:
    run = client.call("logit_lens", prompts="a").structured_content["run_id"]
    assert cancel(client, run)["finding"] == f"{run} had already ended (done)."
    assert not client.call("read_run", run_id=run).is_error


def test_a_run_that_never_was(client: Caller) -> None:
    result = client.call("cancel_run", run_id="steer-abcdef")
    assert result.is_error
    assert text(result).startswith("invalid_request: there is no run 'steer-abcdef'")


def test_another_client_can_wait_for_a_run_and_end_it(client: Caller, server: HttpServer) -> None:
    run = begin(client)
    with server.client("sse") as other:
        said: list[str | None] = []
        waiting = client.begin("read_run", lambda *progress: said.append(progress[2]), run_id=run, wait_seconds=1)
        until(lambda: said)
        cancel(other, run)
        answer = waiting.result(10)

    assert any("Partial" in note for note in answer.structured_content["notes"])


def test_two_that_cancel_at_once_are_both_answered(client: Caller, server: HttpServer) -> None:
    run = begin(client)
    with server.client() as other:
        calls = [caller.begin("cancel_run", run_id=run) for caller in (client, other)]
        states = [call.result(10).structured_content["state"] for call in calls]

    assert states == ["cancelled", "cancelled"]


def test_a_run_that_told_its_id_goes_on_when_its_client_hangs_up(server: HttpServer, client: Caller) -> None:
    with server.client() as leaving:
        run = begin(leaving)
    time.sleep(0.5)

    answer = client.call("read_run", run_id=run, wait_seconds=0).structured_content
    assert answer["state"] == "running"
    cancel(client, run)


@pytest.mark.parametrize("transport", ["http", pytest.param("sse", marks=pytest.mark.slow)])
def test_a_run_that_told_nobody_ends_when_its_client_hangs_up(
    transport: str, server: HttpServer, client: Caller, store: RunStore
) -> None:
    before = {record.id for record in store.latest(1000)}
    # The client of SSE complains of what the server still sends it while it leaves.
    with suppress(BaseExceptionGroup), server.client(transport) as leaving:
        said: list[float] = []
        leaving.begin("logit_lens", lambda *progress: said.append(progress[0]), **LONG)
        until(lambda: said)
    (run,) = {record.id for record in store.latest(1000)} - before

    # The server notices the hang-up in its own time, and the run then ends before its next batch; without either it
    # would end "done", which is what this waits for.
    until(lambda: store.read(run).state != "running", 120)
    assert store.read(run).state == "cancelled"
    assert not client.call("logit_lens", prompts="a").is_error
