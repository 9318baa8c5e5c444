"""Random calls through the tools and through the interpreter."""

from __future__ import annotations

import json
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from nnterp_mcp.errors import NnterpError
from tests.interpreter.cases import Call, Cases
from tests.interpreter.checks import CHECKS
from tests.interpreter.comparison import Comparison
from tests.interpreter.language import Operation
from tests.interpreter.subject import Subject


@dataclass(frozen=True)
class Outcome:
    """What came of one call.

    Attributes:
        call: The tool and its arguments.
        told: The comparison.
        refusal: With what the tool refused it; None where it answered.
    """

    call: Call
    told: Comparison
    refusal: str | None = None

    def __str__(self) -> str:
        """The call, so that it can be made again, and what differs."""
        tool, arguments = self.call
        return "\n  ".join([f"{tool} {json.dumps(arguments)}", *self.told.faults[:4]])


def compare(subject: Subject, call: Call, kept: Sequence[Operation] = ()) -> Outcome:
    """Makes one call both ways; what `edit_model` keeps in force comes before the call's own interventions."""
    tool, arguments = call
    told = Comparison(subject.by.tokenizer)
    try:
        result = subject.lab.call(tool, **arguments)
    except NnterpError as error:
        return Outcome(call, told, error.message)
    except Exception:
        told.faults.append(traceback.format_exc(limit=-3))
        return Outcome(call, told)
    meant = arguments | {"interventions": [*kept, *arguments.get("interventions", [])]}
    CHECKS[tool](subject, meant, result, told)
    return Outcome(call, told)


def play(subject: Subject, seed: int, count: int, without: Collection[str] = ()) -> Iterator[Outcome]:
    """Draws so many calls and makes them, none of the tools that are left out."""
    cases = Cases(subject, Random(f"{subject.name} {seed}"))
    for _ in range(count):
        yield compare(subject, cases.draw(without))
