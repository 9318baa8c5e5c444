"""Loading with `backend="ndif"`: what is refused before anything is sent, and what the service says of itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nnterp_mcp.errors import Forbidden, InvalidRequest, Unsupported, WorkerLost
from nnterp_mcp.laboratory import Laboratory
from nnterp_mcp.pool.deployments import describe_deployments
from nnterp_mcp.settings import Settings

DEPLOYED = {
    "deployments": {
        "a": {"deployment_level": "HOT", "application_state": "DEPLOYING", "repo_id": "org/large"},
        "b": {"deployment_level": "HOT", "application_state": "RUNNING", "repo_id": "org/large"},
        "c": {"deployment_level": "WARM", "application_state": "NOT_STARTED", "repo_id": "org/other"},
        "d": {"deployment_level": "COLD", "application_state": "NOT_STARTED", "repo_id": "org/absent"},
    }
}


@contextmanager
def telling(pages: dict[str, tuple[int, Any]]) -> Generator[str]:
    """A service that answers GET requests from a table."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = pages.get(self.path, (404, {"detail": "Not Found"}))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def load(folder: Path, host: str | None, **arguments: Any) -> Laboratory:
    return Laboratory(str(folder), settings=Settings(ndif_host=host), backend="ndif", **arguments)


def test_a_server_that_was_not_told_so_sends_nothing_to_ndif(tiny: Callable[..., Path]) -> None:
    with pytest.raises(Forbidden, match="sends nothing to NDIF"):
        load(tiny("llama"), None)


@pytest.mark.parametrize("given", [{"dtype": "float16"}, {"device": "cpu"}, {"quantization": "8bit"}])
def test_what_the_service_decides_is_refused(tiny: Callable[..., Path], given: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=f"{next(iter(given))} is for the NDIF service to decide"):
        load(tiny("llama"), "http://127.0.0.1:9", **given)


def test_a_service_of_another_generation_is_refused_before_anything_is_sent(tiny: Callable[..., Path]) -> None:
    theirs = {"/env": (200, {"python_version": "3.12.1 (main)", "packages": {"nnsight": "0.9.0"}})}
    with telling(theirs) as host, pytest.raises(Unsupported, match=r"runs nnsight 0\.9\.0, and this server 0\.8"):
        load(tiny("llama"), host)


def test_a_service_that_is_not_there(tiny: Callable[..., Path]) -> None:
    with telling({}) as host:
        pass
    with pytest.raises(WorkerLost, match="refuses connections"):
        load(tiny("llama"), host)


@pytest.mark.parametrize("address", ["api.ndif.us", "ftp://a", "http://user:secret@a", "http://a b"])
def test_an_address_that_is_none_is_refused_without_being_quoted(address: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(ndif_host=address)
    assert "secret" not in str(refused.value)


def test_the_key_is_in_no_setting_that_is_written_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", "very-secret")
    settings = Settings(ndif_host="https://api.ndif.us/")

    assert settings.ndif_host == "https://api.ndif.us"
    assert settings.ndif_key() == "very-secret"
    assert "very-secret" in settings.take_secrets()
    assert "very-secret" not in f"{settings!r}{settings.model_dump_json()}"


def test_what_a_service_has_deployed_in_words() -> None:
    with telling({"/status": (200, DEPLOYED)}) as host:
        said = describe_deployments(host, "")
    assert said == f"NDIF at {host} serves org/large (running), org/other (not_started)."
    with telling({"/status": (200, {"deployments": {}})}) as host:
        assert "has no model deployed" in describe_deployments(host, "")
    with telling({"/status": (503, {})}) as host:
        assert describe_deployments(host, "key") == f"NDIF at {host} does not say what it serves (HTTP 503)."
    assert "does not say what it serves (ConnectError)" in describe_deployments(host, "")
