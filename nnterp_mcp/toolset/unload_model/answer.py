"""From a result of `unload_model` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import size
from nnterp_mcp.toolset.unload_model.result import UnloadModelAnswer, UnloadModelResult


def digest(result: UnloadModelResult) -> UnloadModelAnswer:
    """In words."""
    freed = "" if result.memory is None else f" and {size(result.memory)} of memory are free"
    how = f"its process has ended{freed}" if result.base is None else f"{result.base} stays loaded without the adapter"
    return UnloadModelAnswer(finding=f"{result.handle} is unloaded: {how}.", remaining=result.remaining)
