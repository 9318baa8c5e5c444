"""The text of answers: compact tables, and notes that say what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnterp_mcp.contract import Answer, Cell, Table
from nnterp_mcp.formatting import elided, number, on_one_line, plural, quoted
from nnterp_mcp.request.selectors import SHARED_PAIRS

_SHARED = 3
"""Pairs of categories with a common first token that an answer names."""

_LABELS = 4
"""Interventions that a note names one by one."""


def shared_tokens(shared: Mapping[str, Sequence[str]]) -> list[str]:
    """The notes that name target categories with a common first token, under `a and b`; many pairs are counted."""
    notes = [
        f"{elided(pair, 80)} share the first token {quoted(elided(tokens[0]))}: it counts for both."
        for pair, tokens in list(shared.items())[:_SHARED]
    ]
    if len(shared) > _SHARED:
        others = plural(len(shared) - _SHARED, "more pair")
        notes.append(f"{others} of categories share first tokens{', or more' if len(shared) >= SHARED_PAIRS else ''}.")
    return notes


def in_force(interventions: Sequence[str], where: str = "") -> list[str]:
    """The note that names the interventions of a call: one short line, or none.

    Args:
        interventions: Each in a few words.
        where: In which passes they act, if not in all of the call.
    """
    if not interventions:
        return []
    named = "; ".join(elided(label, 80) for label in interventions[:_LABELS])
    others = len(interventions) - _LABELS
    return [f"In force{where}: {named}; and {others} more." if others > 0 else f"In force{where}: {named}."]


def left_out(what: str, part: str) -> str:
    """The note that says where `read_run` has what an answer does not show."""
    return f"{what} not shown: read_run part={part}."


def table(content: Table) -> str:
    """A table as lines of cells joined by ` | `."""
    lines = [" | ".join(map(on_one_line, content.columns))]
    lines += [" | ".join(cell(value) for value in row) for row in content.rows]
    return "\n".join(lines)


def cell(value: Cell) -> str:
    """One cell: a dash for nothing; parts joined by spaces, pairs by commas."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return on_one_line(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        separator = ", " if any(isinstance(part, list) for part in value) else " "
        return separator.join(cell(part) for part in value)
    return number(value)


def lines(answer: Answer, *parts: str) -> str:
    """The text of an answer: the finding, the parts, the notes."""
    finding, *notes = map(on_one_line, (answer.finding, *answer.notes))
    return "\n".join(part for part in (finding, *parts, *notes) if part)
