"""`python -m tests.interpreter`: random calls on every family, and a table of the largest difference by tool."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.interpreter.families import FAMILIES
from tests.interpreter.runs import CHECKS, Outcome, play
from tests.interpreter.subject import Subject

LOADED = [("auto", "left"), ("auto", "right"), ("eager", "left"), ("eager", "right")]
"""How each family is loaded: the attention (auto is sdpa where a family has it), and where its tokenizer pads."""


def main() -> int:
    """Plays, and prints; fails where anything differs."""
    asked = _arguments()
    counts: Counter[str] = Counter()
    largest: dict[tuple[str, str], float] = {}
    for family in asked.families:
        begun = time.monotonic()
        for number, (attention, side) in enumerate(LOADED):
            share = asked.cases // len(LOADED) + (number < asked.cases % len(LOADED))
            with tempfile.TemporaryDirectory() as root:
                subject = Subject.make(family, attention, side, Path(root))
                for outcome in play(subject, asked.seed, share):
                    _note(subject, outcome, counts, largest)
        print(f"{family}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    _print(asked.families, counts, largest)
    return int(counts["disagreements"] > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.interpreter", description=__doc__)
    parser.add_argument("--cases", type=int, default=132, help="calls on each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    return parser.parse_args()


def _note(subject: Subject, outcome: Outcome, counts: Counter[str], largest: dict[tuple[str, str], float]) -> None:
    tool = outcome.call[0]
    counts["calls"] += 1
    counts["refused"] += outcome.refusal is not None
    counts["ties"] += outcome.told.ties
    counts["disagreements"] += bool(outcome.told.faults)
    key = (tool, subject.family)
    largest[key] = max(largest.get(key, 0.0), outcome.told.largest)
    if outcome.refusal is not None:
        print(f"refused: {subject.name}: {outcome.refusal}", file=sys.stderr)
    if outcome.told.faults:
        print(f"{subject.name}: {outcome}", flush=True)


def _print(families: list[str], counts: Counter[str], largest: dict[tuple[str, str], float]) -> None:
    print(f"| family | {' | '.join(CHECKS)} |\n|{'---|' * (len(CHECKS) + 1)}")
    for family in families:
        cells = [f"{largest[tool, family]:.0e}" if (tool, family) in largest else "–" for tool in CHECKS]
        print(f"| {family} | {' | '.join(cells)} |")
    print(", ".join(f"{counts[name]} {name}" for name in ("calls", "disagreements", "refused", "ties")))


if __name__ == "__main__":
    sys.exit(main())
