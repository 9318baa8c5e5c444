"""Runs as tasks, through the SDK's own client, with and without the extension declared, in both eras."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    Request,
    RequestParams,
    Result,
)
from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from nnterp_mcp.server.tasks import TASKS
from tests.serving import Caller, HttpServer, http, text, until

PROMPT = "The capital of France is"
LONG: dict[str, Any] = {"prompts": [PROMPT] * 400, "max_new_tokens": 240}


class TaskParams(RequestParams):
    task_id: str
    input_responses: dict[str, Any] | None = None


class TaskRequest(Request[TaskParams, str]):
    method: str
    params: TaskParams


class Answered(Result):
    model_config = ConfigDict(extra="allow")


class Claimed(Result):
    model_config = ConfigDict(alias_generator=to_camel)
    result_type: Literal["task"]
    task_id: str
    status: str
    created_at: str
    ttl_ms: int
    poll_interval_ms: int


class KnowsTasks(ClientExtension):
    """What a client that knows tasks does: it polls until there is a result, here without waiting long."""

    identifier = TASKS

    def __init__(self) -> None:
        self.begun: list[Claimed] = []

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Claimed, resolve=self._finish)]

    async def _finish(self, task: Claimed, context: ClaimContext) -> CallToolResult:
        self.begun.append(task)
        while True:
            request = TaskRequest(method="tasks/get", params=TaskParams(task_id=task.task_id))
            found = (await context.session.send_request(request, Answered)).model_extra or {}
            if found["status"] == "completed":
                return CallToolResult.model_validate(found["result"])
            if found["status"] != "working":
                raise AssertionError(found)


def ask(client: Caller, method: str, run_id: str, **params: Any) -> dict[str, Any]:
    request = TaskRequest(method=f"tasks/{method}", params=TaskParams(task_id=run_id, **params))
    return client.send(request, Answered).model_extra or {}


def refusal(call: Callable[[], Any]) -> Any:
    with pytest.raises(MCPError) as raised:
        call()
    return raised.value.error


@pytest.fixture(scope="module")
def server(tiny: Callable[..., Path]) -> Generator[HttpServer]:
    at_once = "from nnterp_mcp.server import tasks\ntasks.AT_ONCE = 0"  # how fast a run is depends on the machine
    with http(first=at_once, max_runs_days=2) as started, started.client() as client:
        assert not client.call("load_model", model=str(tiny("llama"))).is_error
        yield started


@pytest.fixture(scope="module")
def knowing(server: HttpServer) -> Generator[tuple[Caller, KnowsTasks]]:
    extension = KnowsTasks()
    with server.client(extensions=[extension]) as client:
        yield client, extension


def test_a_late_answer_is_a_task_whose_result_is_the_answer(
    knowing: tuple[Caller, KnowsTasks], server: HttpServer
) -> None:
    client, extension = knowing
    call: dict[str, Any] = {"prompts": [PROMPT] * 4, "max_new_tokens": 8}
    answer = client.call("generate", **call)
    (task,) = extension.begun
    with server.client() as other:
        plain = other.call("generate", **call)
        again = ask(client, "get", task.task_id)

    assert answer.structured_content is not None
    assert plain.structured_content is not None
    assert answer.structured_content["run_id"] == task.task_id
    assert task.ttl_ms == 2 * 24 * 3600 * 1000
    assert task.poll_interval_ms == 1000
    assert again["status"] == "completed"
    assert again["resultType"] == "complete"
    assert datetime.fromisoformat(again["lastUpdatedAt"]) > datetime.fromisoformat(again["createdAt"])
    assert again["result"]["structuredContent"] == answer.structured_content
    assert answer.structured_content["finding"] == plain.structured_content["finding"]
    assert answer.structured_content["table"] == plain.structured_content["table"]


def test_what_is_no_run_is_no_task(knowing: tuple[Caller, KnowsTasks]) -> None:
    client, extension = knowing
    before = len(extension.begun)
    assert not client.call("tokenize", prompts=PROMPT).is_error
    assert not client.call("session").is_error
    assert client.call("logit_lens", promts=PROMPT).is_error
    assert len(extension.begun) == before
    assert TASKS in (client.extensions or {})


def test_a_task_is_cancelled_by_its_id_and_keeps_what_it_had(knowing: tuple[Caller, KnowsTasks]) -> None:
    client, extension = knowing
    before = len(extension.begun)
    begun = time.monotonic()
    calling = client.begin("generate", **LONG)
    task = until(lambda: extension.begun[before:])[0]
    assert time.monotonic() - begun < 30
    working = ask(client, "get", task.task_id)
    assert ask(client, "update", task.task_id, input_responses={}) == {"resultType": "complete"}
    assert ask(client, "cancel", task.task_id) == {"resultType": "complete"}
    ended = until(lambda: (found := ask(client, "get", task.task_id))["status"] != "working" and found)
    calling.exception(30)

    assert working["status"] == "working"
    assert "result" not in working
    assert ended["status"] == "cancelled"
    assert ended["statusMessage"].startswith(f"{task.task_id} was cancelled.")
    assert "result" not in ended
    assert ask(client, "cancel", task.task_id) == {"resultType": "complete"}  # it has ended: nothing more happens


def test_a_failed_call_is_a_completed_task_with_the_error_of_the_tool(knowing: tuple[Caller, KnowsTasks]) -> None:
    client, _ = knowing
    refused = client.call("logit_lens", prompts=PROMPT, layers=99)
    run = next(run for run in client.resources() if "logit_lens" in run.name and "failed" in (run.title or ""))
    task = ask(client, "get", run.name)

    assert task["status"] == "completed"
    assert task["result"]["isError"]
    assert task["result"]["content"] == [{"type": "text", "text": text(refused)}]


@pytest.mark.parametrize("method", ["get", "update", "cancel"])
def test_unknown_and_expired_tasks_are_refused(method: str, knowing: tuple[Caller, KnowsTasks]) -> None:
    client, _ = knowing
    for unknown in ("generate-aaaaaa", "../runs", ""):
        error = refusal(lambda unknown=unknown: ask(client, method, unknown))
        assert error.code == INVALID_PARAMS
    assert (
        "it never was, or was deleted to make room" in refusal(lambda: ask(client, method, "generate-aaaaaa")).message
    )


@pytest.mark.parametrize(("era", "code"), [("auto", MISSING_REQUIRED_CLIENT_CAPABILITY), ("legacy", METHOD_NOT_FOUND)])
def test_clients_that_know_no_tasks_see_no_difference(era: str, code: int, server: HttpServer) -> None:
    with server.client(era=era) as client:
        call = client.begin("generate", prompts=[PROMPT] * 4, max_new_tokens=8)
        answer = call.result(60)
        assert "run_id: generate-" in text(answer)
        assert answer.structured_content is not None
        error = refusal(lambda: ask(client, "get", answer.structured_content["run_id"]))

    assert error.code == code
    if era == "auto":
        assert error.data == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
