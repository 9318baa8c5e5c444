"""From a result of `cancel_run` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.toolset.cancel_run.result import CancelRunAnswer, CancelRunResult


def digest(result: CancelRunResult) -> CancelRunAnswer:
    """In words."""
    done = f"is {result.state}" if result.was_running else f"had already ended ({result.state})"
    kept = "What it had finished is kept: read_run shows it." if result.partial else ""
    return CancelRunAnswer(
        finding=f"{result.run_id} {done}.",
        notes=[kept] if kept else [],
        run_id=result.run_id,
        state=result.state,
    )
