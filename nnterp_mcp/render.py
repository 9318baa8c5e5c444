"""Notes that answers share: interventions in force, target categories with a common token, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnterp_mcp.formatting import elided, plural, quoted
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


def left_out(count: int, noun: str, part: str, instead: str = "") -> list[str]:
    """The note that says where `read_run` has what an answer does not show, or none where it shows all.

    Args:
        count: How many are not shown.
        noun: One of them.
        part: The part of the run that has them.
        instead: Arguments that choose others to be shown.
    """
    choose = f", or choose {instead}" if instead else ""
    return [f"{plural(count, noun)} not shown: read_run part={part}{choose}."] if count > 0 else []
