"""Nothing secret is said: not in the log, not in an error, whatever a client sends and wherever it puts it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nnterp_mcp import redaction
from nnterp_mcp.redaction import HIDDEN, RedactingFormatter, hide, redact
from nnterp_mcp.settings import Settings
from tests.server.test_safety_http import ask, connected, everything, head
from tests.serving import PATIENCE, http, until, workers_of

TOKEN = "the-Token.of+these~tests/5678"
HUB = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
LOCAL = {"Host": "localhost"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MODERN = LOCAL | BEARER | {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call"}


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test hides is no secret to the next."""
    monkeypatch.setattr(redaction, "_pattern", redaction._pattern)


def call(tool: str, **arguments: object) -> bytes:
    """A call as a client of today's protocol sends it: no session, one request."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


def test_the_token_is_in_no_log_and_no_error() -> None:
    with http(token=TOKEN, HF_TOKEN=HUB) as server:
        for secret in (TOKEN, HUB, quote(TOKEN, safe="")):
            for headers in (
                {"Host": secret},
                LOCAL | {"Origin": f"https://{secret}"},
                LOCAL | {"Authorization": secret},
                LOCAL | {"Authorization": f"Basic {secret}"},
                LOCAL | BEARER | {"Mcp-Session-Id": secret},
                LOCAL | BEARER | {"MCP-Protocol-Version": secret},
                LOCAL | BEARER | {"Last-Event-ID": secret, "Cookie": secret, "Referer": secret, secret.strip("/"): "x"},
            ):
                for method, path in (("POST", f"/mcp?access_token={secret}"), ("GET", f"/{secret}")):
                    ask(server, method, path, headers, f'{{"{secret}": '.encode())
            ask(server, "POST", f"/messages/?session_id={secret}", LOCAL | BEARER, secret.encode())
            ask(server, "POST", f"/messages/{secret}", LOCAL | BEARER, b"{}")
            with connected(server, f"GET /{secret}\x01 HTTP/9.9\r\n{secret}\r\n\r\n".encode()) as connection:
                everything(connection)
            with connected(server, head(secret[:8] + "\x02", "/", secret)) as connection:
                everything(connection)
            for tool, arguments in {
                "load_model": {"model": f"/{secret}"},
                "unload_model": {"model": secret},
                "tokenize": {"prompts": "a", secret: secret},
                "logit_lens": {"prompts": "a", "layers": secret},
            }.items():
                said = ask(server, "POST", "/mcp", MODERN | {"Mcp-Name": tool}, call(tool, **arguments))
                assert said.status == 200, said
                assert json.loads(said.body)["result"]["isError"]
                assert HIDDEN in said.body.decode()
                assert secret not in said.body.decode()
        log = until(lambda: "session_id" in server.log.read_text() and server.log.read_text(), 10)

    assert f"Received invalid session ID: {HIDDEN}" in log
    for secret in (TOKEN, HUB, quote(TOKEN, safe=""), HUB[3:]):
        assert secret not in log


def test_a_worker_does_not_know_the_token(tiny: Callable[..., Path]) -> None:
    body = call("load_model", model=str(tiny("llama")))
    with http(token=TOKEN) as server, ThreadPoolExecutor() as threads:
        loading = threads.submit(ask, server, "POST", "/mcp", MODERN | {"Mcp-Name": "load_model"}, body)
        (worker,) = until(lambda: workers_of(server.process))
        known = json.dumps(worker.environ()) + " ".join(worker.cmdline())
        loading.result(PATIENCE)

    assert "NNTERP_MCP_FOLDERS" in known
    assert TOKEN not in known


def test_a_record_hides_the_token(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with http(token=TOKEN, runs=tmp_path) as server:
        for tool, arguments in (
            ("load_model", {"model": str(tiny("llama"))}),
            ("logit_lens", {"prompts": f"the token is {TOKEN}"}),
            ("steer", {"prompts": "a", "vector": TOKEN.replace("+", "-").replace("~", "-"), "layers": 1, "factors": 1}),
            ("steer", {"prompts": f"a {TOKEN}", "vector": "none", "layers": 1, "factors": 1}),
        ):
            ask(server, "POST", "/mcp", MODERN | {"Mcp-Name": tool}, call(tool, **arguments))
        records = [path.read_text() for path in tmp_path.glob("*/run.json")]

    assert len(records) == 3
    assert sum(HIDDEN in record for record in records) == 2
    assert not any(TOKEN in record for record in records)


def test_a_token_is_neither_shown_nor_sent_nor_taken_when_it_is_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNTERP_MCP_TOKEN", TOKEN)
    settings = Settings()

    for said in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert TOKEN not in said
    assert settings.token is not None
    assert settings.token.get_secret_value() == TOKEN
    for weak in ("fifteen-letters", "with spaces in the middle", 'quoted"quoted"quoted'):
        monkeypatch.setenv("NNTERP_MCP_TOKEN", weak)
        with pytest.raises(ValidationError) as caught:
            Settings()
        assert weak not in str(caught.value)


def test_the_environments_credentials_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNTERP_MCP_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", "secret-of-the-hub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-a-cloud")
    monkeypatch.setenv("NNTERP_MCP_MAX_PROMPT_TOKENS", "12345678")
    hide(Settings().take_secrets())

    assert redact(f"{TOKEN} secret-of-the-hub secret-of-a-cloud 12345678") == f"{HIDDEN} {HIDDEN} {HIDDEN} 12345678"
    monkeypatch.delenv("NNTERP_MCP_TOKEN", raising=False)
    assert Settings().token is None


@given(st.text(), st.text(), st.sampled_from([TOKEN, quote(TOKEN, safe=""), TOKEN.replace("+", " ")]))
def test_a_secret_is_hidden_wherever_it_stands(before: str, after: str, secret: str) -> None:
    hide([TOKEN])

    assert secret not in redact(before + secret + after)


def test_what_looks_like_a_credential_is_hidden_though_nobody_configured_it() -> None:
    said = redact(f"Authorization: Bearer short, bearer {TOKEN}x=, Basic dXNlcjpwYXNzd29yZA==, {HUB};")

    assert said == f"Authorization: Bearer short, bearer {HIDDEN}, Basic {HIDDEN}, {HIDDEN};"
    assert redact("the bearer of news, basic research") == "the bearer of news, basic research"


def test_a_traceback_is_redacted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hide([TOKEN])
    try:
        raise ValueError(f"bad value {TOKEN}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed with %s", (TOKEN,), sys.exc_info())
    said = RedactingFormatter("%(message)s").format(record)

    assert TOKEN not in said
    assert said.startswith(f"failed with {HIDDEN}\nTraceback")
    assert f"ValueError: bad value {HIDDEN}" in said
