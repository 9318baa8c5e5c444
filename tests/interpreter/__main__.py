"""`python -m tests.interpreter`: random calls on every family, and a table of the largest difference by tool."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.interpreter.checks import CHECKS
from tests.interpreter.families import FAMILIES
from tests.interpreter.runs import Outcome, play
from tests.interpreter.served import play_served, serve
from tests.interpreter.subject import Subject

LOADED = [("auto", "left"), ("auto", "right"), ("eager", "left"), ("eager", "right")]
"""How each family is loaded: the attention (auto is sdpa where a family has it), and where its tokenizer pads."""

SERVED = ("llama", "gemma3_text", "gpt_neox")
"""Families that are loaded in a server too, with edits that stay in force and patches from runs."""


@dataclass
class Tally:
    """What came of all calls.

    Attributes:
        counts: How many there were, and of which kind.
        largest: The largest difference by row and tool.
    """

    counts: Counter[str] = field(default_factory=Counter[str])
    largest: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])

    def note(self, row: str, subject: Subject, outcome: Outcome) -> None:
        """Counts a call, and prints what it disagrees about."""
        tool = outcome.call[0]
        self.counts["calls"] += 1
        self.counts["refused"] += outcome.refusal is not None
        self.counts["ties"] += outcome.told.ties
        self.counts["disagreements"] += bool(outcome.told.faults)
        self.largest[row, tool] = max(self.largest.get((row, tool), 0.0), outcome.told.largest)
        if outcome.refusal is not None:
            print(f"refused: {subject.name}: {outcome.refusal}", file=sys.stderr)
        if outcome.told.faults:
            print(f"{subject.name}: {outcome}", flush=True)

    def table(self) -> str:
        """The largest difference by row and tool, and the counts."""
        lines = [f"| family | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|"]
        for row in dict.fromkeys(row for row, _ in self.largest):
            cells = [f"{self.largest[row, tool]:.0e}" if (row, tool) in self.largest else "–" for tool in CHECKS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        named = ("calls", "disagreements", "refused", "ties")
        return "\n".join([*lines, ", ".join(f"{self.counts[name]} {name}" for name in named)])


def main() -> int:
    """Plays, and prints; fails where anything differs."""
    asked = _arguments()
    tally = Tally()
    # The server's client comes before nnsight, whose `.save` on every object breaks classes that are built later.
    rows = [(family, True) for family in SERVED if family in asked.families and asked.tools == list(CHECKS)]
    rows += [(family, False) for family in asked.families]
    for family, served in rows:
        begun, row = time.monotonic(), f"{family}, served" if served else family
        for subject, outcome in (_served if served else _loaded)(family, asked):
            tally.note(row, subject, outcome)
        print(f"{row}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    print(tally.table())
    return int(tally.counts["disagreements"] > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.interpreter", description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="calls on each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument(
        "--tools", nargs="+", default=list(CHECKS), choices=list(CHECKS), help="play these alone, and none served"
    )
    return parser.parse_args()


def _loaded(family: str, asked: argparse.Namespace) -> Iterator[tuple[Subject, Outcome]]:
    """Calls in this process, under every way of loading."""
    for number, (attention, side) in enumerate(LOADED):
        with tempfile.TemporaryDirectory() as root:
            subject = Subject.make(family, attention, side, Path(root))
            count = asked.cases // len(LOADED) + (number < asked.cases % len(LOADED))
            for outcome in play(subject, asked.seed, count, CHECKS.keys() - asked.tools):
                yield subject, outcome


def _served(family: str, asked: argparse.Namespace) -> Iterator[tuple[Subject, Outcome]]:
    """Calls to a server."""
    with tempfile.TemporaryDirectory() as root, serve(family, Path(root)) as subject:
        for outcome in play_served(subject, asked.seed, asked.cases):
            yield subject, outcome


if __name__ == "__main__":
    sys.exit(main())
