"""`unload_model` in the worker, for an adapted model whose process stays with its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.toolset.unload_model.params import UnloadModelParams
from nnterp_mcp.toolset.unload_model.result import UnloadModelResult
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: UnloadModelParams, job: Job) -> UnloadModelResult:
    """Names what is unloaded; the worker then forgets its bench."""
    return UnloadModelResult(handle=bench.handle, memory=None, remaining=[])
