"""`edit_model` in the server, which keeps the edits: they join a call's own before it is recorded."""

from __future__ import annotations

from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.operations import describe
from nnterp_mcp.toolset.edit_model import SPEC
from nnterp_mcp.toolset.edit_model.params import EditModelParams
from nnterp_mcp.toolset.edit_model.result import EditModelResult


async def run(session: Session, params: EditModelParams, on_progress: OnProgress) -> EditModelResult:
    """Has the worker try the edits, then makes them active in place of those before."""
    entry = session.pool.find(params.model)
    await session.pool.call(entry.handle, SPEC.name, params.model_dump(mode="json"), on_progress)
    entry.edits = params.interventions
    return EditModelResult(model=entry.handle, in_force=[describe(operation) for operation in entry.edits])
