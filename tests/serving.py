"""Real server processes and real clients for the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters
from mcp.client.extension import ClientExtension
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp_types import (
    CallToolResult,
    Prompt,
    PromptReference,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    ResourceTemplateReference,
    TextContent,
    Tool,
)

PATIENCE = 180.0
"""Seconds that a call may take on a busy machine."""


_DATA = tempfile.TemporaryDirectory(prefix="nnterp-mcp-tests-")
"""Where the servers of the tests keep runs and vectors, unless a test says otherwise."""


def text(result: CallToolResult) -> str:
    """The text of an answer, with the letters of a run's id that differ in every run replaced."""
    (content,) = result.content
    return re.sub(r"(\brun_id: [a-z_]+-)[a-z2-7]{6}\b", r"\1xxxxxx", content.text)


def environment(**settings: Any) -> dict[str, str]:
    """The environment of a server: no Hub unless a test brings its own, one thread, models below the temporary folder,
    and the given settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NNTERP_MCP_"))}
    folders = json.dumps([tempfile.gettempdir()])
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NNTERP_MCP_FOLDERS": folders}
    variables["NNTERP_MCP_DATA"] = _DATA.name
    variables |= {
        name if name.isupper() else f"NNTERP_MCP_{name.upper()}": str(value) for name, value in settings.items()
    }
    return kept | variables


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nnterp_mcp", "serve", *arguments]


class Caller:
    """A connected MCP client for plain test functions.

    Attributes:
        server: The server's process.
        log: What the server wrote on standard error.
    """

    def __init__(self, portal: BlockingPortal, client: Client, server: psutil.Process, log: Path) -> None:
        self.server = server
        self.log = log
        self._portal = portal
        self._client = client

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        return self.begin(tool, **arguments).result(PATIENCE)

    def begin(
        self, tool: str, on_progress: Callable[[float, float | None, str | None], None] | None = None, **arguments: Any
    ) -> Future[CallToolResult]:
        """Starts a call; cancelling the future cancels the call."""

        async def report(*progress: Any) -> None:
            if on_progress is not None:
                on_progress(*progress)

        async def run() -> CallToolResult:
            return await self._client.call_tool(tool, arguments, progress_callback=report)

        return self._portal.start_task_soon(run)

    def tools(self) -> list[Tool]:
        return self._portal.call(self._client.list_tools).tools

    def ask(self, method: str, **arguments: Any) -> Any:
        """Calls a method of the SDK's client."""
        return self._portal.call(partial(getattr(self._client, method), **arguments))

    def send(self, request: Any, result: type[Any]) -> Any:
        """Sends a request that the SDK's client has no method for."""
        return self._portal.call(self._client.session.send_request, request, result)

    def resources(self) -> list[Resource]:
        return self._portal.call(self._client.list_resources).resources

    def resource_templates(self) -> list[ResourceTemplate]:
        return self._portal.call(self._client.list_resource_templates).resource_templates

    def read(self, address: str) -> ReadResourceResult:
        return self._portal.call(self._client.read_resource, address)

    def prompts(self) -> list[Prompt]:
        return self._portal.call(self._client.list_prompts).prompts

    def prompt(self, name: str, **arguments: str) -> str:
        (message,) = self._portal.call(self._client.get_prompt, name, arguments).messages
        assert isinstance(message.content, TextContent)
        return message.content.text

    def complete(
        self, reference: ResourceTemplateReference | PromptReference, name: str, value: str, **known: str
    ) -> list[str]:
        argument = {"name": name, "value": value}
        return self._portal.call(self._client.complete, reference, argument, known or None).completion.values

    @property
    def extensions(self) -> dict[str, dict[str, Any]] | None:
        return self._client.server_capabilities.extensions

    @property
    def instructions(self) -> str | None:
        return self._client.instructions

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.server)


@contextmanager
def stdio(command: Sequence[str] = (), era: str = "auto", **settings: Any) -> Generator[Caller]:
    """A server on stdio (or another command of ours) with one client, which speaks an era of the protocol."""
    before = set(psutil.Process().children())
    with _log() as (log, sink):
        command = command or serve_command()
        parameters = StdioServerParameters(command=command[0], args=[*command[1:]], env=environment(**settings))
        with _client(stdio_client(parameters, errlog=sink), era) as (portal, client):
            started = [child for child in psutil.Process().children() if child not in before]
            (server,) = [child for child in started if {*command[1:]} <= {*child.cmdline()}]
            yield Caller(portal, client, server, log)


class HttpServer:
    """A server of ours that listens on a port of its choice."""

    def __init__(self, process: psutil.Process, address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    @contextmanager
    def client(
        self, transport: str = "http", era: str = "auto", extensions: Sequence[ClientExtension] = ()
    ) -> Generator[Caller]:
        source = f"{self.address}/mcp" if transport == "http" else sse_client(f"{self.address}/sse")
        with _client(source, era, extensions) as (portal, client):
            yield Caller(portal, client, self.process, self.log)


@contextmanager
def http(transport: str = "http", first: str = "", port: int = 0, **settings: Any) -> Generator[HttpServer]:
    """A server, on a port of the system's choice unless told; `first` is code that runs in it before it starts."""
    with _log() as (log, sink):
        command = serve_command("--transport", transport, "--port", str(port))
        if first:
            command[1:3] = ["-c", f"{first}\nfrom nnterp_mcp.cli import main\nmain()"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=sink, env=environment(**settings))
        try:
            until(lambda: "listening" in log.read_text() or process.poll() is not None)
            found = re.search(r"(http://\S+?)/mcp", log.read_text())
            assert found, log.read_text()
            yield HttpServer(psutil.Process(process.pid), found.group(1), log)
        finally:
            process.kill()
            process.wait()


class Raw:
    """A server on stdio without a client: lines in, lines out."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.lines: list[bytes] = []

    def send(self, method: str, id: int | None = None, **params: Any) -> None:  # noqa: A002 - the protocol's name
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message if id is None else message | {"id": id}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, id: int) -> dict[str, Any]:  # noqa: A002 - the protocol's name
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, b""):
            self.lines.append(line)
            if (message := json.loads(line)).get("id") == id and "method" not in message:
                return message
        raise AssertionError("the server closed its output")

    def notification(self, method: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, b""):
            self.lines.append(line)
            if (message := json.loads(line)).get("method") == method:
                return message
        raise AssertionError("the server closed its output")

    def initialize(self) -> dict[str, Any]:
        client = {"name": "raw", "version": "0"}
        self.send("initialize", 0, protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        answer = self.answer(0)
        self.send("notifications/initialized")
        return answer

    def call(self, id: int, tool: str, **arguments: Any) -> None:  # noqa: A002 - the protocol's name
        self.send("tools/call", id, name=tool, arguments=arguments)

    def workers(self) -> list[psutil.Process]:
        return workers_of(psutil.Process(self.process.pid))


@contextmanager
def raw(command: Sequence[str] | None = None, **settings: Any) -> Generator[Raw]:
    with _log() as (log, sink):
        process = subprocess.Popen(
            command or serve_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=environment(**settings),
        )
        try:
            yield Raw(process, log)
        finally:
            process.kill()
            process.wait()


def workers_of(server: psutil.Process) -> list[psutil.Process]:
    return [child for child in server.children() if "nnterp_mcp.worker.main" in child.cmdline()]


def until(condition: Callable[[], Any], within: float = 60.0) -> Any:
    """Waits until something holds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {within:g} s")


def ended(processes: Sequence[psutil.Process], within: float) -> bool:
    """Whether all processes end in time; one that nobody has waited for yet has ended too."""
    try:
        until(lambda: not any(_lives(process) for process in processes), within)
    except AssertionError:
        return False
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _client(
    source: Any, era: str = "auto", extensions: Sequence[ClientExtension] = ()
) -> Iterator[tuple[BlockingPortal, Client]]:
    client = Client(source, mode=era, extensions=extensions)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        yield portal, client


@contextmanager
def _log() -> Iterator[tuple[Path, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".log") as sink:
        yield Path(sink.name), sink
