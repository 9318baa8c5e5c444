"""`load_model` in the server: a worker of its own for the model, or the one that has it."""

from __future__ import annotations

import anyio.to_thread

from nnterp_mcp.contract import Late
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.access import admit_adapter, admit_model
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.toolset.load_model.params import LoadModelParams
from nnterp_mcp.toolset.load_model.result import LoadModelResult


async def run(session: Session, params: LoadModelParams, on_progress: OnProgress) -> LoadModelResult | Late:
    """Loads what may be loaded, joins a load under way, or finds the model loaded."""
    settings = session.settings
    allowed, folders = settings.allowed_models, settings.folders
    model = session.pool.loaded_as(params.model) if params.adapter is not None else None
    if model is not None and model["adapter"] is not None:
        raise InvalidRequest(
            f"{params.model} carries the adapter {shown(model['adapter'])} already.",
            "Give the handle of its base, or merge adapters with PEFT.",
        )
    if model is None:
        admitted = await anyio.to_thread.run_sync(admit_model, params.model, allowed, folders)
        model = params.model_copy(update={"model": admitted}).model_dump(mode="json")
    if params.adapter is not None:
        model["adapter"] = await anyio.to_thread.run_sync(admit_adapter, params.adapter, allowed, folders)
    params = LoadModelParams.model_validate(model)
    card, known = await session.pool.load(model, on_progress)
    if card is None:
        return _late(session, params)
    return LoadModelResult.model_validate(card | {"already_loaded": known})


def _late(session: Session, params: LoadModelParams) -> Late:
    request = params.model_dump(mode="json")
    said = next((entry.progress for entry in session.pool.entries if entry.request == request), None)
    message = said.message if said else ""
    return Late(
        finding=f"{params.model} is still loading{f' ({message})' if message else ''}.",
        notes=["Call load_model again with the same arguments to wait for it; session shows how far it is."],
        state="loading",
        progress=message or None,
    )
