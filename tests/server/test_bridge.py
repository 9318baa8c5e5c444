"""A stdio client through `nnterp-mcp connect` to a real HTTP server, in both eras of the protocol."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import JSONRPCError, JSONRPCRequest, ResourceTemplateReference

from nnterp_mcp.server.bridge import Bridge
from tests.serving import Caller, HttpServer, ended, http, raw, stdio, text, until

ERAS = ("auto", "legacy")
"""How a client begins: by asking for 2026-07-28, or by the handshake of the versions before it."""

PROMPT = "The capital of France is"
TOKEN = "a-token-of-this-test-0123456789"


def connect_command(address: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "nnterp_mcp", "connect", address, *flags]


def bridge(address: str, era: str = "legacy", *flags: str, **settings: Any) -> AbstractContextManager[Caller]:
    return stdio(connect_command(address, *flags), era, **settings)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(MCPError) as raised:
        call()
    return raised.value.error.message


@pytest.fixture(scope="module")
def server(tiny: Callable[..., Path]) -> Generator[HttpServer]:
    with http() as started, started.client() as client:
        assert not client.call("load_model", model=str(tiny("llama"))).is_error
        yield started


@pytest.mark.parametrize("era", [pytest.param("auto", marks=pytest.mark.slow), "legacy"])
def test_answers_through_the_bridge_are_the_servers(era: str, server: HttpServer) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("load_model", {"model": "tiny-llama-that-is-not-there"}),
        ("logit_lens", {"prompts": PROMPT, "targets": {"a": "Paris"}}),
        ("run_prompts", {"prompts": [PROMPT], "targets": {"a": "Paris"}}),
        ("logit_lens", {"promts": PROMPT}),
    ]
    with server.client() as direct, bridge(server.address, era) as bridged:
        for tool, arguments in calls:
            assert text(bridged.call(tool, **arguments)) == text(direct.call(tool, **arguments))
        address = next(resource.uri for resource in bridged.resources() if resource.uri.startswith("run://"))
        reference = ResourceTemplateReference(uri="run://{run_id}")
        unknown = [refusal(lambda client=client: client.call("no_such_tool")) for client in (bridged, direct)]

        assert bridged.instructions == direct.instructions
        assert bridged.tools() == direct.tools()
        assert bridged.resource_templates() == direct.resource_templates()
        assert bridged.prompts() == direct.prompts()
        assert bridged.prompt("induction_heads") == direct.prompt("induction_heads")
        assert bridged.read(address).contents == direct.read(address).contents
        assert bridged.complete(reference, "run_id", "") == direct.complete(reference, "run_id", "")
        assert unknown[0] == unknown[1]


@pytest.mark.parametrize("era", ERAS)
def test_progress_and_cancelling_pass(era: str, server: HttpServer) -> None:
    said: list[str | None] = []
    with bridge(server.address, era) as client:
        prompts = [PROMPT + " a" * n for n in range(40)]
        client.begin("logit_lens", lambda *now: said.append(now[2]), prompts=prompts, positions="all").result(60)
        ending = client.begin("generate", prompts=[PROMPT] * 8, max_new_tokens=240)
        run = until(lambda: [run for run in client.resources() if "generate" in run.name and "running" in run.title])[0]
        ending.cancel()
        until(lambda: f"{run.name} | tiny-llama | cancelled" in text(client.call("session")))

    assert said[-1] == "40 of 40 prompts"


@pytest.mark.parametrize("kind", ["serve", "connect"])
def test_a_client_that_reads_no_more_ends_the_process_quietly(kind: str, server: HttpServer) -> None:
    with raw(connect_command(server.address) if kind == "connect" else None) as client:
        client.initialize()
        process = client.process
        assert process.stdout is not None
        process.stdout.close()
        with suppress(BrokenPipeError):
            client.send("tools/list", 1)
            client.send("ping", 2)

        assert process.wait(30) == 0
        assert "Traceback" not in client.log.read_text()


@pytest.mark.parametrize("sent", ["", "initialize"])
def test_a_server_that_is_away_is_told_and_the_bridge_ends_with_its_client(sent: str) -> None:
    with raw(connect_command("http://127.0.0.1:1/mcp")) as client:
        if sent:
            client.send(
                sent, 0, protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "t", "version": "0"}
            )
        assert client.process.stdin is not None
        client.process.stdin.close()

        if sent:
            assert "no server answers at http://127.0.0.1:1/mcp" in client.answer(0)["error"]["message"]
        assert client.process.wait(30) == 0


@pytest.mark.parametrize("era", ERAS)
def test_a_client_that_leaves_ends_its_call(era: str, server: HttpServer) -> None:
    with server.client() as watching:
        with bridge(server.address, era) as leaving:
            process = leaving.server
            leaving.begin("generate", prompts=[PROMPT] * 1000, max_new_tokens=240)  # longer than the bridge waits
            runs = until(lambda: [run for run in watching.resources() if "running" in (run.title or "")])
        assert ended([process], 10)
        until(lambda: f"{runs[0].name} | tiny-llama | cancelled" in text(watching.call("session")))


@pytest.mark.slow
@pytest.mark.parametrize("era", ["auto", "legacy"])
def test_a_server_that_dies_and_comes_back(era: str, tiny: Callable[..., Path]) -> None:
    with http() as first:
        port = urlsplit(first.address).port
        with bridge(first.address, era) as client:
            assert not client.call("load_model", model=str(tiny("gpt2"))).is_error
            call = client.begin("generate", prompts=[PROMPT] * 8, max_new_tokens=240)
            until(lambda: [run for run in client.resources() if "running" in (run.title or "")])
            first.process.kill()

            lost = refusal(lambda: call.result(20))
            away = refusal(lambda: client.call("session"))
            with http(port=port or 0):
                back = text(client.call("logit_lens", prompts=PROMPT))

    assert lost.startswith(f"worker_lost: the server at {first.address}/mcp left tools/call unanswered: ")
    assert lost.endswith("session lists what is loaded; finished runs are kept.")
    assert away.startswith(f"worker_lost: no server answers at {first.address}/mcp: ")
    assert "Start it there (nnterp-mcp serve --transport http), then call again." in away
    assert back.startswith("no_model: no model is loaded")


def test_the_token_comes_from_the_environment_alone() -> None:
    with http(token=TOKEN) as server:
        with bridge(server.address, token=TOKEN) as client:
            assert not client.call("session").is_error
        with bridge(server.address, "legacy", "--token-env", "LAB_TOKEN", LAB_TOKEN=TOKEN) as client:
            assert not client.call("session").is_error
            assert TOKEN not in " ".join(client.server.cmdline())
        with raw(connect_command(server.address), token="wrong-" + TOKEN) as wrong:
            said = wrong.initialize()["error"]["message"]
            assert TOKEN not in said + wrong.log.read_text()

    assert said.startswith(f"forbidden: {server.address}/mcp answered 401: Unauthorized")
    assert "Put the server's token into the variable that --token-env names (NNTERP_MCP_TOKEN)." in said


class Odd(BaseHTTPRequestHandler):
    """Answers of servers that are none of ours."""

    def do_POST(self) -> None:
        status = int(self.path.strip("/"))
        self.send_response(status)
        self.send_header("Location", "https://elsewhere.example/mcp")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def odd() -> Generator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def answer_to_request(address: str, **options: Any) -> str:
    """What a client hears to a request, which is an error."""
    sent: list[Any] = []

    async def ask() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def messages():
            yield JSONRPCRequest(jsonrpc="2.0", id=1, method="tools/list")
            with anyio.fail_after(20):
                while not sent:
                    await anyio.sleep(0.01)

        async with httpx2.AsyncClient(**options) as client:
            await Bridge(address, client, send).carry(messages())

    anyio.run(ask)
    (answer,) = sent
    assert isinstance(answer, JSONRPCError)
    assert answer.id == 1
    return answer.error.message


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, "invalid_request: {} does not speak MCP"),
        (307, "invalid_request: {} sends to https://elsewhere.example/mcp\nConnect to that URL, if you trust it."),
        (404, "invalid_request: {} answered 404: Not Found. <html>\nIs it the URL of an MCP server"),
        (429, "limit_exceeded: {} answered 429: Too Many Requests. <html>\nWait a minute."),
        (500, "invalid_request: {} answered 500: Internal Server Error. <html>"),
    ],
)
def test_every_request_is_answered_whatever_the_server_is(status: int, said: str, odd: str) -> None:
    address = f"{odd}/{status}"
    assert answer_to_request(address).startswith(said.format(address))


def test_a_server_that_says_nothing_is_given_up() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"
        said = answer_to_request(address, timeout=0.3)

    assert said.startswith(f"timed_out: the server at {address} said nothing")
