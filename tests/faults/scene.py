"""A server with a warm model and finished runs, faults in it, and what is true after each."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from tests.serving import PATIENCE, Caller, HttpServer, http, stdio, text, until, workers_of

SHARED: dict[str, Any] = {"batch_tokens": 1, "max_queue": 2, "max_models": 2, "stop_timeout": 2, "reply_within": 600}
"""Settings of the server that most faults share: one prompt a batch, and short queues."""

LONG = ["a b c"] * 1000
"""Prompts that keep a tiny model busy for many seconds, one batch after another."""

PROMPT = "The capital of France is"

_REMEMBERED = 5
"""Finished runs that are read after every fault: the first, and the latest."""


class Scene:
    """A server, its store, its models and its first client.

    Attributes:
        folder: Where it keeps runs and vectors, and where a fault may write.
        finished: What each run that is done answered, by its id.
    """

    def __init__(
        self, models: Callable[[str], Path], folder: Path, transport: str, settings: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.finished: dict[str, Any] = {}
        self._models = models
        self._transport = transport
        self._settings = {"data": folder / "data", "runs": folder / "runs"} | dict(settings)
        self._stack = ExitStack()
        self._client: Caller | None = None
        self._server: HttpServer | None = None
        self._expected: dict[str, Any] | None = None

    @property
    def client(self) -> Caller:
        assert self._client is not None
        return self._client

    @property
    def http(self) -> HttpServer:
        assert self._server is not None
        return self._server

    @property
    def runs(self) -> Path:
        return Path(self._settings["runs"])

    @property
    def process(self) -> psutil.Process:
        return self.client.server

    def start(self) -> None:
        """Starts the server, and loads the model."""
        if self._transport == "stdio":
            self._client = self._stack.enter_context(stdio(**self._settings))
        else:
            self._server = self._stack.enter_context(http(self._transport, **self._settings))
            self._client = self._stack.enter_context(self._server.client(self._transport))
        self.load()
        answer = self.lens()
        self._expected = self._expected or answer
        assert answer == self._expected

    def stop(self) -> None:
        stack, self._stack = self._stack, ExitStack()
        with suppress(Exception):  # a client whose server was killed may say so
            stack.close()

    def restart(self) -> None:
        """Another server over the same store."""
        self.stop()
        self.start()

    def model(self, family: str) -> Path:
        return self._models(family)

    def load(self, family: str = "llama") -> CallToolResult:
        result = self.client.call("load_model", model=str(self.model(family)))
        assert not result.is_error, text(result)
        return result

    def worker(self) -> psutil.Process:
        """The process of the model; of several, the one that was started first."""
        return min(workers_of(self.process), key=lambda process: process.create_time())

    def lens(self, client: Caller | None = None, **arguments: Any) -> dict[str, Any]:
        """A short call that is done; its run must be readable from now on."""
        arguments = {"prompts": PROMPT, "model": "tiny-llama"} | arguments
        result = (client or self.client).call("logit_lens", **arguments)
        assert not result.is_error, text(result)
        answer = dict(result.structured_content or {})
        run_id = answer.pop("run_id")
        if run_id is not None and not any("could not be recorded" in note for note in answer["notes"]):
            self.finished[run_id] = answer
            if len(self.finished) > _REMEMBERED:
                del self.finished[list(self.finished)[1]]
        return answer

    def begin_long(self, tool: str = "logit_lens") -> Long:
        """A call that takes long, once its first batches are computed."""
        known = self.run_ids(tool)
        said: list[float] = []
        call = self.client.begin(tool, lambda *progress: said.append(progress[0]), prompts=LONG, model="tiny-llama")
        until(lambda: len(said) > 3 or call.done())
        (run_id,) = self.run_ids(tool) - known
        return Long(call, run_id)

    def run_ids(self, tool: str) -> set[str]:
        return {path.name for path in self.runs.glob(f"{tool}-*")}

    def record(self, run_id: str) -> dict[str, Any]:
        return json.loads((self.runs / run_id / "run.json").read_text())

    def ended(self, run_id: str, within: float = 20.0) -> dict[str, Any]:
        """The record of a run once it is written that it ended."""
        until(lambda: self.record(run_id)["state"] != "running", within)
        return self.record(run_id)

    def next_call_works(self) -> bool:
        """Whether the same call as ever answers the same, after at most the next step of a lost model's error."""
        held = self.client.call("session").structured_content
        if not any(row[0] == "tiny-llama" for row in held["models"]["rows"]):
            self.load()
        answer = self.lens()
        return answer == self._expected

    def finished_runs_are_readable(self) -> bool:
        """Whether every run that was done still answers as it did."""
        return all(self._reads_as(run_id, answer) for run_id, answer in self.finished.items())

    def _reads_as(self, run_id: str, answer: Mapping[str, Any]) -> bool:
        result = self.client.call("read_run", run_id=run_id)
        if result.is_error:
            return False
        read = dict(result.structured_content or {})
        return {name: value for name, value in read.items() if name != "run_id"} == answer


@dataclass(frozen=True)
class Long:
    """A call that is under way, and the run that records it."""

    call: Future[CallToolResult]
    run_id: str


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: What it is.
        inject: Does it, and returns what the client saw.
        sees: What the client must see, as a regular expression.
        transport: Of the server.
        settings: Of the server; equal ones share it.
        slow: Takes more than 5 s on its own, most often since a model is loaded again.
        needs: What must be true of the machine, None if nothing; returns why not.
    """

    name: str
    inject: Callable[[Scene], str]
    sees: str
    transport: str = "http"
    settings: Mapping[str, Any] = field(default_factory=lambda: SHARED)
    slow: bool = False
    needs: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """What is true after a fault."""

    saw: str
    works: bool
    readable: bool
    seconds: float


def inject(fault: Fault, scene: Scene) -> Outcome:
    """Makes a fault happen and looks at what is left."""
    begun = time.monotonic()
    saw = fault.inject(scene)
    return Outcome(saw, scene.next_call_works(), scene.finished_runs_are_readable(), time.monotonic() - begun)


def expected(fault: Fault, outcome: Outcome) -> bool:
    """Whether the client saw what it should have, and nothing else was lost."""
    return re.match(fault.sees, outcome.saw) is not None and outcome.works and outcome.readable


class Scenes:
    """Hands out scenes; faults that ask for equal ones in a row share one."""

    def __init__(self, models: Callable[[str], Path]) -> None:
        self._models = models
        self._key: object = None
        self._scene: Scene | None = None
        self._stack = ExitStack()

    @contextmanager
    def scene(self, fault: Fault) -> Generator[Scene]:
        """A scene for a fault; one that a fault left in pieces is not used again."""
        key = fault.transport, tuple(fault.settings.items())
        if self._scene is None or key != self._key:
            self.close()
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nnterp-mcp-faults-")))
            self._scene, self._key = Scene(self._models, folder, fault.transport, fault.settings), key
            self._scene.start()
        try:
            yield self._scene
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._scene is not None:
            self._scene.stop()
        self._scene = None
        stack, self._stack = self._stack, ExitStack()
        stack.close()


def seen(call: Future[CallToolResult], within: float = PATIENCE) -> str:
    """What a client sees of a call: the code and the first line, or the protocol's error."""
    try:
        return first_line(call.result(within))
    except MCPError as error:
        return f"protocol error: {error}"


def first_line(result: CallToolResult) -> str:
    line = text(result).splitlines()[0]
    return line if result.is_error else f"ok: {line}"


def attempt(client: Caller, tool: str, **arguments: Any) -> str:
    """Calls, and says what the client saw."""
    return seen(client.begin(tool, **arguments))


@contextmanager
def another_client(scene: Scene, transport: str = "http") -> Iterator[Caller]:
    with scene.http.client(transport) as client:
        yield client
