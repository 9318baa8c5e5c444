"""A server with a tiny model, a vector and a run; and what became of the inputs that it got."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import BY_CODE
from tests.dictionaries import DICTIONARY, random_dictionary
from tests.limits.pulse import longest
from tests.serving import Caller, stdio, text

PROMPT = "The capital of France is"

FAULTS_OF_OURS = {"internal", "worker_lost", "timed_out", "out_of_memory"}
"""What no argument may lead to, however odd it is."""

_LONG = 5.0
"""Seconds from which on a call is named while it is tried."""


@dataclass
class Tally:
    """What the calls of one tool came to.

    Attributes:
        outcomes: How many ended in which way.
        slowest: Seconds of the slowest refusal, as its client waited, and what was refused.
        dearest: Seconds that the server and its worker computed for the refusal that cost them most.
        pause: Seconds of the longest pause of the server's event loop.
        wrong: What no argument may lead to, with the arguments.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    dearest: float = 0.0
    pause: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Bed:
    """The server's client, and a tally for each tool."""

    def __init__(self, client: Caller, folder: Path, pulse: Path) -> None:
        self.client = client
        self.folder = str(folder)
        self.tallies: dict[str, Tally] = {}
        self._pulse = pulse
        for tool, arguments in (
            ("load_model", {"model": self.folder}),
            ("make_vector", {"name": "vector", "method": "random", "norm": 1.0}),
            ("load_features", {"name": "dictionary", "source": str(random_dictionary())}),
            ("session", {}),
            ("read_run", {"run_id": "logit_lens-aaaaaa"}),
            ("logit_lens", {"prompts": PROMPT}),
        ):
            result = client.call(tool, **arguments)
        assert not result.is_error, text(result)
        self.run_id = result.structured_content["run_id"]
        self._workers = client.workers()
        longest(pulse)  # without what is loaded once

    def outcome(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """`ok`, or the code of the error."""
        begun, computed = time.monotonic(), self._computed()
        result = self.client.call(tool, **arguments)
        took, cost = time.monotonic() - begun, self._computed() - computed
        if took > _LONG:
            print(f"{took:.1f} s: {tool} {str(arguments)[:200]}", file=sys.stderr, flush=True)
        outcome = text(result).partition(":")[0] if result.is_error else "ok"
        tally = self.tallies.setdefault(tool, Tally())
        tally.outcomes[outcome] += 1
        if result.is_error:
            tally.dearest = max(tally.dearest, cost)
            tally.slowest = max(tally.slowest, (took, f"{text(result)[:60]!r} for {str(arguments)[:80]}"))
        if outcome != "ok" and outcome not in BY_CODE.keys() - FAULTS_OF_OURS:
            tally.wrong.append(f"{text(result)[:300]} for {str(arguments)[:300]}")
        return outcome

    def _computed(self) -> float:
        """Seconds that the server and its worker computed so far."""
        times = [process.cpu_times() for process in (self.client.server, *self._workers)]
        return sum(one.user + one.system for one in times)

    def measure(self, tool: str) -> Tally:
        """The tally of a tool, with the longest pause since the last one that was measured."""
        tally = self.tallies.setdefault(tool, Tally())
        tally.pause = max(tally.pause, longest(self._pulse))
        return tally

    def holds_its_model(self) -> bool:
        """Whether no input cost the model."""
        return "1 model loaded" in text(self.client.call("session"))


@contextmanager
def made(folder: Path, data: Path) -> Generator[Bed]:
    """A bed over the model in a folder; what the server keeps goes to `data`."""
    pulse = data / "pulse"
    code = (
        f"from tests.limits.pulse import install; install({str(pulse)!r})\n"
        "from nnterp_mcp.cli import main\nmain(['serve'])"
    )
    limits = {"max_models": 1, "reply_within": 600, "allowed_models": json.dumps([str(folder), str(DICTIONARY)])}
    with stdio([sys.executable, "-c", code], data=data, runs=data / "runs", **limits) as client:
        yield Bed(client, folder, pulse)


def rows(tallies: Mapping[str, Tally]) -> list[str]:
    """A table of what became of the inputs."""
    lines = [
        "| tool | calls | outcomes | slowest refusal | computed for one at most | longest pause |",
        "|---|---|---|---|---|---|",
    ]
    for tool, tally in tallies.items():
        outcomes = ", ".join(f"{name} {count}" for name, count in tally.outcomes.most_common())
        count = tally.outcomes.total()
        lines.append(
            f"| {tool} | {count} | {outcomes} | {tally.slowest[0] * 1000:.0f} ms | {tally.dearest * 1000:.0f} ms "
            f"| {tally.pause * 1000:.0f} ms |"
        )
    calls = sum(tally.outcomes.total() for tally in tallies.values())
    wrong = sum(len(tally.wrong) for tally in tallies.values())
    slowest = max((tally.slowest for tally in tallies.values()), default=(0.0, ""))
    pause = max((tally.pause for tally in tallies.values()), default=0.0)
    lines.append(
        f"\n{calls} calls, {wrong} internal or lost; slowest refusal {slowest[0] * 1000:.0f} ms ({slowest[1]}); "
        f"longest pause of the event loop {pause * 1000:.0f} ms"
    )
    return lines
