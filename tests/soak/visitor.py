"""A client that comes and goes, calls, cancels, and kills workers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Overdue
from contextlib import ExitStack
from pathlib import Path

from mcp_types import CallToolResult

from tests.serving import Caller, HttpServer, text, workers_of
from tests.soak.cases import Case, equal, reads_as
from tests.soak.tally import Tally

DEADLINE = 120.0
"""Seconds after which a call counts as hung."""

_CHAOS = {"worker_lost", "stale_handle", "no_model", "cancelled", "limit_exceeded"}
"""What a call may come to while workers are killed and queues are full."""

_LONG = ["a b c d e f"] * 400


class Visitor:
    """One client that comes and goes.

    Args:
        server: The server.
        transport: What it speaks.
        cases: What it may call.
        folders: The models, to load again what was lost.
        tally: Where it counts.
        seed: Of what it chooses.
        kills: Whether it kills workers.
    """

    def __init__(
        self,
        server: HttpServer,
        transport: str,
        cases: Sequence[Case],
        folders: Mapping[str, Path],
        tally: Tally,
        seed: int,
        kills: bool,
    ) -> None:
        self._server, self._transport, self._cases, self._folders = server, transport, cases, folders
        self._tally, self._random, self._kills = tally, random.Random(seed), kills
        self._stack = ExitStack()
        self._client: Caller

    def stay(self, until: float) -> None:
        """Calls until the time is up."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (80, self._call_known),
            (6, self._cancel),
            (6, self._read_again),
            (4, self._look_around),
            (4, self._connect),
            (1 if self._kills else 0, self._kill),
        ]
        weights, doings = zip(*actions, strict=True)
        self._connect()
        try:
            while time.monotonic() < until:
                try:
                    self._random.choices(doings, weights)[0]()
                except Exception as error:
                    self._tally.count("client errors", f"{type(error).__name__}: {error}")
                    self._connect()
        finally:
            self._stack.close()

    def _connect(self) -> None:
        self._stack.close()
        self._client = self._stack.enter_context(self._server.client(self._transport))
        self._tally.count("connections")

    def _call_known(self) -> None:
        case = self._random.choice(self._cases)
        result = self._wait(self._client.begin(case.tool, **case.arguments), case.tool)
        result = self._read_late(result)
        if result is None:
            return
        if result.is_error:
            self._refused(case, result)
            return
        answer = dict(result.structured_content or {})
        if equal(answer, case.answer):
            self._tally.finish(answer)
        else:
            self._tally.count("wrong answers", f"{case.tool} {case.arguments}: {answer}, not {case.answer}")

    def _wait(self, call: Future[CallToolResult], what: str) -> CallToolResult | None:
        self._tally.count("calls")
        try:
            return call.result(DEADLINE)
        except Overdue:
            self._tally.count("hung calls", what)
            return None

    def _read_late(self, result: CallToolResult | None) -> CallToolResult | None:
        """The answer of a call that went on past `reply_within`."""
        while (
            result is not None
            and not result.is_error
            and (result.structured_content or {}).get("state")
            in (
                "queued",
                "running",
            )
        ):
            self._tally.count("late answers")
            run_id = (result.structured_content or {})["run_id"]
            result = self._wait(self._client.begin("read_run", run_id=run_id), f"read_run {run_id}")
        return result

    def _refused(self, case: Case, result: CallToolResult) -> None:
        code = text(result).partition(":")[0]
        if code == "internal":
            self._tally.count("internal errors", text(result))
        elif code not in _CHAOS:
            self._tally.count("wrong answers", f"{case.tool} {case.arguments}: {text(result)}")
        else:
            self._tally.count(f"answered {code}")
        if code in ("worker_lost", "stale_handle", "no_model"):
            self._load(case.arguments["model"])

    def _load(self, model: str) -> None:
        loaded = self._wait(self._client.begin("load_model", model=str(self._folders[model])), "load_model")
        while loaded is not None and (loaded.structured_content or {}).get("state") == "loading":
            loaded = self._wait(self._client.begin("load_model", model=str(self._folders[model])), "load_model")
        if loaded is not None and loaded.is_error and text(loaded).partition(":")[0] not in _CHAOS:
            self._tally.count("internal errors", text(loaded))

    def _cancel(self) -> None:
        model = self._random.choice(sorted(self._folders))
        call = self._client.begin("logit_lens", prompts=_LONG, model=model)
        time.sleep(self._random.uniform(0, 1))
        call.cancel()
        self._tally.count("cancelled calls")

    def _read_again(self) -> None:
        if not self._tally.finished:
            return
        run_id = self._random.choice(list(self._tally.finished))
        result = self._wait(self._client.begin("read_run", run_id=run_id), f"read_run {run_id}")
        if result is not None and not reads_as(result, self._tally.finished[run_id]):
            self._tally.count("wrong answers", f"read_run {run_id}: {text(result)}")

    def _look_around(self) -> None:
        result = self._wait(self._client.begin("session"), "session")
        if result is not None and result.is_error:
            self._tally.count("internal errors", text(result))

    def _kill(self) -> None:
        workers = workers_of(self._server.process)
        if workers:
            self._random.choice(workers).kill()
            self._tally.count("workers killed")
