"""`edit_model` in the worker: tries the edits, so that a layer or vector that does not exist is told at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.operations import Operation, describe
from nnterp_mcp.session.jobs import Job
from nnterp_mcp.toolset.edit_model.contract import EditModelParams, EditModelResult

if TYPE_CHECKING:
    from nnterp_mcp.session.bench import Bench

_PLACES = ("positions", "query_positions", "key_positions")


def run(bench: Bench, params: EditModelParams, job: Job) -> EditModelResult:
    """Plans the edits at every position of a short text; whether a prompt has theirs, each call says."""
    prompts = bench.encode(["a"])
    bench.plan([_anywhere(operation) for operation in params.interventions], prompts, job)
    return EditModelResult(model=bench.handle, in_force=[describe(operation) for operation in params.interventions])


def _anywhere(operation: Operation) -> Operation:
    named = [name for name in _PLACES if name in type(operation).model_fields]
    return operation.model_copy(update=dict.fromkeys(named, ("all",)))
