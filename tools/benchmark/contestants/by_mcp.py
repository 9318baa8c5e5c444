"""Our tools over MCP: a real client and a real server, on stdio unless the job says otherwise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client

from ..workloads import ANSWER, Workload
from . import Numbers, Play, Stage

_SERVE = [sys.executable, "-m", "nnterp_mcp", "serve"]
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}},
}

_CALLS = 50
"""Trivial calls in a row: one by itself, after a pause, takes as long as processes need to wake up."""


class Contestant(Stage):
    """A client with a server, which has loaded the model once it is needed."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments)
        self._stack = ExitStack()
        self._data = self._stack.enter_context(TemporaryDirectory(prefix="bench-"))

    def close(self) -> None:
        """Ends client and server."""
        self._stack.close()

    def warm(self) -> None:
        """Has the model loaded and checked, which runs it."""
        assert self._loaded

    def processes(self) -> list[int]:
        """The server and its workers."""
        (server,) = [child for child in psutil.Process().children() if "serve" in child.cmdline()]
        return [server.pid, *(child.pid for child in server.children(recursive=True))]

    def lens(self, load: Workload) -> Play:
        """`logit_lens`."""

        def numbers(result: Any) -> Numbers:
            layers = [layer for reading in result["readings"] for layer in reading["layers"]]
            return [number for layer in layers for number in _described(layer)]

        return self._tool("logit_lens", numbers, prompts=list(load.prompts), positions=load.positions)

    def patchscope(self, load: Workload) -> Play:
        """`patchscope`."""

        def numbers(result: Any) -> Numbers:
            patches = [patch for source in result["sources"] for patch in source["patches"]]
            return [number for patch in patches for number in _described(patch)]

        return self._tool("patchscope", numbers, source_prompts=list(load.prompts))

    def grid(self, load: Workload) -> Play:
        """`patch_activations`, by KL from the clean run."""
        clean, corrupted = load.prompts

        def numbers(result: Any) -> Numbers:
            return [cell["metric"]["mean"] for cell in result["cells"]]

        return self._tool("patch_activations", numbers, clean=clean, corrupted=corrupted, metric="kl")

    def run_prompts(self, load: Workload) -> Play:
        """`run_prompts`."""

        def numbers(result: Any) -> Numbers:
            return [row["probabilities"][0][0] for row in result["rows"]]

        return self._tool("run_prompts", numbers, prompts=list(load.prompts), targets={"answer": ANSWER})

    def attention(self, load: Workload) -> Play:
        """`attention_probs`, without the kinds of heads, which take passes of their own."""

        def numbers(result: Any) -> Numbers:
            means = [head["mean"] for head in result["heads"]]
            return [*(mean["entropy"] for mean in means), *(mean["first"] for mean in means)]

        return self._tool("attention_probs", numbers, prompts=list(load.prompts), kinds=False)

    def call_stdio(self, load: Workload) -> Play:
        """A call that needs no model."""
        return self._trivial(self._client)

    def call_http(self, load: Workload) -> Play:
        """The same over streamable HTTP."""
        return self._trivial(self._connect(f"{self._address}/mcp"))

    def call_sse(self, load: Workload) -> Play:
        """The same over SSE."""
        return self._trivial(self._connect(sse_client(f"{self._address}/sse")))

    def start(self, load: Workload) -> Play:
        """A server that is started and asked to initialize."""

        def work() -> subprocess.Popen[bytes]:
            server = subprocess.Popen(_SERVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment)
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps(_INITIALIZE).encode() + b"\n")
            server.stdin.flush()
            assert b"serverInfo" in server.stdout.readline()
            return server

        def end(server: subprocess.Popen[bytes]) -> None:
            server.communicate()

        return Play(work, lambda server: [], end)

    def load_process(self, load: Workload) -> Play:
        """`load_model`, in a worker that starts with the call."""
        load_model = {"model": self.model_name, "device": self.device, "dtype": self.dtype}

        def unload(said: str) -> None:
            self._call(self._client, "unload_model")

        return Play(lambda: self._call(self._client, "load_model", **load_model), lambda said: [], unload)

    @cached_property
    def _environment(self) -> dict[str, str]:
        folders = json.dumps([self.folder])
        return os.environ | {"NNTERP_MCP_DATA": self._data, "NNTERP_MCP_FOLDERS": folders}

    @cached_property
    def _portal(self) -> BlockingPortal:
        return self._stack.enter_context(start_blocking_portal())

    @cached_property
    def _client(self) -> Client:
        """Connected over stdio."""
        parameters = StdioServerParameters(command=_SERVE[0], args=_SERVE[1:], env=self._environment)
        return self._connect(stdio_client(parameters))

    @cached_property
    def _loaded(self) -> str:
        return self._call(self._client, "load_model", model=self.model_name, device=self.device, dtype=self.dtype)

    @cached_property
    def _address(self) -> str:
        """Of a server that answers HTTP and SSE."""
        log = Path(self._data) / "server.log"
        command = [*_SERVE, "--transport", "http", "--port", "0"]
        with log.open("w") as sink:
            server = self._stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stderr=sink, env=self._environment)
            )
        self._stack.callback(server.terminate)
        return _read_address(log, server)

    def _connect(self, source: Any) -> Client:
        return self._stack.enter_context(self._portal.wrap_async_context_manager(Client(source)))

    def _trivial(self, client: Client) -> Play:
        async def work() -> None:
            for _ in range(_CALLS):
                await _ask(client, "session")

        return Play(lambda: self._portal.call(work), lambda done: [], times=_CALLS)

    def _tool(self, tool: str, numbers: Any, **arguments: Any) -> Play:
        """A call, whose numbers are those of its recorded run, before any rounding."""
        assert self._loaded

        def read(said: str) -> Numbers:
            found = re.search(r"run_id: (\S+)", said)
            assert found is not None, said
            result: Any = self._portal.call(self._client.read_resource, f"run://{found.group(1)}/result")
            return numbers(json.loads(result.contents[0].text))

        return Play(lambda: self._call(self._client, tool, **arguments), read)

    def _call(self, client: Client, tool: str, **arguments: Any) -> str:
        return self._portal.call(partial(_ask, client, tool, **arguments))


async def _ask(client: Client, tool: str, **arguments: Any) -> str:
    result: Any = await client.call_tool(tool, arguments)
    said: str = result.content[0].text
    if result.is_error:
        raise RuntimeError(said)
    return said


def _described(distribution: Any) -> Numbers:
    return [*(probability for _, probability in distribution["top"]), distribution["entropy"]]


def _read_address(log: Path, server: subprocess.Popen[Any]) -> str:
    while server.poll() is None:
        if found := re.search(r"(http://\S+?)/mcp", log.read_text()):
            return found.group(1)
        time.sleep(0.01)
    raise ConnectionError(log.read_text())
