"""Result and answer of `edit_model`."""

from __future__ import annotations

from nnterp_mcp.contract import Answer, Result


class EditModelResult(Result):
    """The active edits, in words."""

    model: str
    in_force: list[str]


class EditModelAnswer(Answer):
    """The same as an agent sees it."""

    model: str
    in_force: list[str]

    def body(self) -> list[str]:
        """The edits, one a line."""
        return self.in_force
