"""`edit_model` in the worker: tries the edits, so that a layer or vector that does not exist is told at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.request.operations import describe
from nnterp_mcp.toolset.edit_model.params import EditModelParams
from nnterp_mcp.toolset.edit_model.result import EditModelResult
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: EditModelParams, job: Job) -> EditModelResult:
    """Checks the edits against the model; whether a prompt has their positions, each call says."""
    bench.check(params.interventions)
    return EditModelResult(model=bench.handle, in_force=[describe(operation) for operation in params.interventions])
