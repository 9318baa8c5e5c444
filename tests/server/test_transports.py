"""Real clients on every transport, alone and together."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest

from nnterp_mcp.server.transports import _listen
from nnterp_mcp.settings import Settings
from tests.serving import HttpServer, http, raw, stdio, text

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def server(tiny: Callable[..., Path]) -> Generator[HttpServer]:
    with http() as started, started.client() as client:
        assert not client.call("load_model", model=str(tiny("llama"))).is_error
        yield started


@pytest.mark.parametrize(
    "transport", ["stdio", *(pytest.param(name, marks=pytest.mark.slow) for name in ("http", "sse"))]
)
def test_a_session_from_load_to_unload(transport: str, tiny: Callable[..., Path]) -> None:
    with stdio() if transport == "stdio" else http(transport) as started:  # noqa: SIM117
        with nullcontext(started) if transport == "stdio" else started.client(transport) as client:
            said: list[tuple[float, str | None]] = []
            loading = client.begin(
                "load_model", lambda done, total, message: said.append((done, message)), model=str(tiny("gemma2"))
            )
            card = loading.result(120).structured_content
            lens = client.call("logit_lens", prompts=PROMPT, targets={"a": "Paris"})
            unloaded = client.call("unload_model")

    assert card["model"] == "tiny-gemma2"
    assert (card["card"]["num_layers"], card["card"]["num_heads"], card["card"]["parameters"]) == (4, 4, 144_448)
    assert said[0][1] == "starting the worker's libraries"
    assert all(earlier < later for (earlier, _), (later, _) in pairwise(said))
    assert [row[0] for row in lens.structured_content["table"]["rows"]] == [0, 1, 2, 3]
    assert text(unloaded).startswith("tiny-gemma2 is unloaded: its process has ended and ")


def test_requests_are_answered_also_where_the_input_ends_right_after_them() -> None:
    with raw() as client:
        client.initialize()
        client.send("tools/list", 1)
        client.send("prompts/list", 2)
        assert client.process.stdin is not None
        client.process.stdin.close()

        assert client.answer(1)["result"]["tools"]
        assert client.answer(2)["result"]["prompts"]
        assert client.process.wait(30) == 0


def test_two_clients_share_a_warm_model_and_get_their_own_answers(server: HttpServer) -> None:
    prompts = [f"number {n} of twelve" for n in range(12)]
    with server.client() as one, server.client("sse") as other:
        assert "was loaded already" in text(one.call("load_model", model=_source(one)))
        alone = [text(one.call("tokenize", prompts=prompt)) for prompt in prompts]
        together = [(one, other)[index % 2].begin("tokenize", prompts=prompt) for index, prompt in enumerate(prompts)]

        assert [text(future.result(60)) for future in together] == alone
        assert len(set(alone)) == len(prompts)
        assert len(one.workers()) == 1


def test_a_client_that_leaves_takes_nothing_with_it(server: HttpServer) -> None:
    for transport in ("http", "sse"):
        with server.client(transport) as leaving:
            leaving.begin("logit_lens", prompts=[PROMPT] * 500, positions="all")
    with server.client() as client:
        assert not client.call("tokenize", prompts=PROMPT).is_error


def test_a_server_for_sse_serves_streamable_http_too() -> None:
    with http("sse") as server, server.client("http") as client:
        assert not client.call("session").is_error


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/mcp", {"Host": "evil.example"}, 421), ("/mcp", {"Origin": "http://evil.example"}, 403), ("/other", {}, 404)],
)
def test_strangers_are_refused(path: str, headers: dict[str, str], status: int, server: HttpServer) -> None:
    request = urllib.request.Request(server.address + path, data=b"{}", method="POST")
    for name, value in ({"Content-Type": "application/json", "Accept": "application/json"} | headers).items():
        request.add_header(name, value)

    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == status


def test_nothing_but_the_protocol_comes_out_of_stdio(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Not even what a library prints in the worker: here one that is imported there prints to fd 1 and sys.stdout."""
    noisy = "import os\nprint('noise', flush=True)\nos.write(1, b'more noise\\n')\n"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif '-m' in sys.orig_argv and 'nnterp_mcp.worker.main' in sys.orig_argv:\n"
        f"    class Finder:\n        def find_spec(self, name, path=None, target=None):\n"
        f"            if name == 'transformers':\n                exec({noisy!r})\n"
        f"    sys.meta_path.insert(0, Finder())\n"
    )
    with raw(PYTHONPATH=tmp_path) as server:
        server.initialize()
        server.call(1, "load_model", model=str(tiny("gpt2")))
        assert server.answer(1)["result"]["isError"] is False
        server.call(2, "logit_lens", prompts=PROMPT)
        assert "structuredContent" in server.answer(2)["result"]
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.stdout is not None
        rest = server.process.stdout.readlines()
        log = Path(server.log).read_text()

    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in [*server.lines, *rest])
    assert "noise" in log
    assert "more noise" in log


def _source(client: object) -> str:
    return client.call("session").structured_content["models"]["rows"][0][1]


def test_small_pieces_of_an_answer_go_out_at_once() -> None:
    with _listen(Settings(transport="http", port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
