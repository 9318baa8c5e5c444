"""Result and answer of `cancel_run`."""

from __future__ import annotations

from nnterp_mcp.contract import Answer, Result


class CancelRunResult(Result):
    """The run after that."""

    run_id: str
    state: str
    partial: bool
    was_running: bool


class CancelRunAnswer(Answer):
    """The same as an agent sees it."""

    state: str
