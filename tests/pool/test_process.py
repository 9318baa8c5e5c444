"""What is left, and what a client is told, when a process is killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import Raw, ended, http, raw, stdio, text, until

ENDINGS: dict[str, Callable[[Raw], None]] = {
    "SIGKILL": lambda server: server.process.kill(),
    "SIGTERM": lambda server: server.process.terminate(),
    "EOF": lambda server: server.process.stdin.close(),
}


def test_a_worker_that_is_killed_costs_its_model_and_no_other(tiny: Callable[..., Path]) -> None:
    with stdio(batch_tokens=1) as client:
        assert not client.call("load_model", model=str(tiny("llama"))).is_error
        (doomed,) = client.workers()
        assert doomed.environ()["RUST_BACKTRACE"] == "0"  # with a trace, a panic for want of memory never ends
        assert not client.call("load_model", model=str(tiny("gpt2"))).is_error
        said: list[float] = []
        call = client.begin(
            "logit_lens", lambda *progress: said.append(progress[0]), prompts=["a b"] * 1000, model="tiny-llama"
        )
        until(lambda: said)
        doomed.kill()

        result = call.result(30)
        assert result.is_error
        assert text(result) == (
            "worker_lost: the process that held tiny-llama was killed by SIGKILL (the system does so when memory runs "
            "out); the model and this call are lost\n"
            "Call load_model again; models in other processes are not affected."
        )
        assert not client.call("tokenize", prompts="a", model="tiny-gpt2").is_error
        assert text(client.call("tokenize", prompts="a", model="tiny-llama")).startswith(
            "stale_handle: 'tiny-llama' is gone: the process that held tiny-llama was killed by SIGKILL"
        )
        assert "tiny-llama is gone: " in text(client.call("session"))

        again = client.call("load_model", model=str(tiny("llama")))
        assert again.structured_content["model"] == "tiny-llama"
        assert not client.call("logit_lens", prompts="a", model="tiny-llama").is_error


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_no_worker_outlives_its_server(ending: str, stopped: bool, tiny: Callable[..., Path]) -> None:
    with raw() as server:
        server.initialize()
        server.send(
            "tools/call",
            1,
            name="load_model",
            arguments={"model": str(tiny("gpt2"))},
            _meta={"progressToken": "load"},
        )
        server.notification("notifications/progress")
        workers = server.workers()
        assert len(workers) == 1
        if stopped:
            workers[0].send_signal(signal.SIGSTOP)
        ENDINGS[ending](server)

        assert server.process.wait(15) in (0, -signal.SIGKILL)
        assert ended(workers, within=5)


@pytest.mark.slow
def test_no_warm_worker_outlives_its_server(tiny: Callable[..., Path]) -> None:
    with raw(batch_tokens=1) as server:
        server.initialize()
        for number, family in enumerate(("gpt2", "llama"), start=1):
            server.call(number, "load_model", model=str(tiny(family)))
            assert not server.answer(number)["result"]["isError"]
        server.call(3, "logit_lens", prompts=["a b"] * 1000, model="tiny-gpt2")
        workers = server.workers()
        assert len(workers) == 2
        server.process.kill()

        assert ended(workers, within=5)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_no_worker_outlives_a_server_on_http(name: str, tiny: Callable[..., Path]) -> None:
    with http() as server, server.client() as client:
        said: list[float] = []
        client.begin("load_model", lambda *progress: said.append(progress[0]), model=str(tiny("gpt2")))
        until(lambda: said)
        workers = client.workers()
        server.process.send_signal(getattr(signal, name))

        assert ended([server.process], within=15)
        assert ended(workers, within=5)
        assert "Traceback" not in server.log.read_text()
