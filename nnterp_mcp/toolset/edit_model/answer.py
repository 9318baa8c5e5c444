"""From a result of `edit_model` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import elided, plural
from nnterp_mcp.toolset.edit_model.result import EditModelAnswer, EditModelResult

_SHOWN = 12
"""Edits that an answer lists."""


def digest(result: EditModelResult) -> EditModelAnswer:
    """In words."""
    count = len(result.in_force)
    if not count:
        return EditModelAnswer(finding=f"{result.model} is as it was loaded.", model=result.model, in_force=[])
    notes = [f"{plural(count - _SHOWN, 'more edit')} not listed."] if count > _SHOWN else []
    return EditModelAnswer(
        finding=f"{plural(count, 'edit')} in force on {result.model}, for every call of every client until cleared.",
        notes=notes,
        model=result.model,
        in_force=[elided(label, 120) for label in result.in_force[:_SHOWN]],
    )
