"""From a result of `edit_model` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import plural
from nnterp_mcp.toolset.edit_model.result import EditModelAnswer, EditModelResult

_SHOWN = 12
"""Edits that an answer lists."""


def digest(result: EditModelResult) -> EditModelAnswer:
    """In words."""
    count = len(result.in_force)
    if not count:
        return EditModelAnswer(finding=f"No edits are active on {result.model}.", model=result.model, in_force=[])
    notes = [f"{plural(count - _SHOWN, 'more edit')} not listed."] if count > _SHOWN else []
    return EditModelAnswer(
        finding=f"{plural(count, 'edit')} active on {result.model}, in every call of every client until cleared.",
        notes=notes,
        model=result.model,
        in_force=result.in_force[:_SHOWN],
    )
