"""The Inspector's command line on every transport: what it lists, whether it finds a fault, and calls under load."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.toolset import specs
from tests.judges.conftest import Run
from tests.serving import environment, http

INSPECTOR = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"


@contextmanager
def on_stdio(settings: dict[str, Any]) -> Generator[Sequence[str]]:
    variables = [f"{name}={value}" for name, value in environment(**settings).items() if name.startswith("NNTERP_MCP")]
    yield [sys.executable, "-m", "nnterp_mcp", "serve", *(part for one in variables for part in ("-e", one))]


@contextmanager
def on_http(settings: dict[str, Any]) -> Generator[Sequence[str]]:
    with http(**settings) as server:
        yield ["--server-url", f"{server.address}/mcp", "--transport", "http", "--protocol-era", "modern"]


@contextmanager
def on_sse(settings: dict[str, Any]) -> Generator[Sequence[str]]:
    with http(**settings) as server:
        yield ["--server-url", f"{server.address}/sse", "--transport", "sse"]


Way = Callable[[dict[str, Any]], AbstractContextManager[Sequence[str]]]
WAYS: dict[str, Way] = {"stdio": on_stdio, "http": on_http, "sse": on_sse}


@pytest.mark.parametrize(
    "transport", ["stdio", *(pytest.param(way, marks=pytest.mark.slow) for way in ("http", "sse"))]
)
def test_lists_every_tool_and_calls_one(transport: str, judge: Run, tiny: Callable[..., Path], tmp_path: Path) -> None:
    with WAYS[transport]({"data": tmp_path, "max_requests_per_minute": 1_000_000}) as where:
        listed = judge(INSPECTOR, "--cli", *where, "--method", "tools/list", "--strict", "--format", "json", "-q")
        model = f"model={tiny('llama')}"
        called = judge(
            INSPECTOR, "--cli", *where, "--method", "tools/call", "--tool-name", "load_model", "--tool-arg", model
        )

    assert listed.returncode == 0, listed.stderr[-2000:]
    told = json.loads(listed.stdout)
    assert {tool["name"] for tool in told["result"]["tools"]} == set(specs())
    assert [found for tool in told.get("schemaFindings", []) for found in tool["findings"]] == []
    assert called.returncode == 0, called.stderr[-2000:]
    assert "tiny-llama is loaded" in called.stdout


@pytest.mark.slow
def test_answers_many_calls_at_once(judge: Run, tmp_path: Path) -> None:
    with on_http({"data": tmp_path, "max_requests_per_minute": 1_000_000}) as where:
        what = ("--method", "tools/call", "--tool-name", "session", "--load", "--load-requests", "200")
        done = judge(INSPECTOR, "--cli", *where, *what, "--format", "json", "-q")

    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
