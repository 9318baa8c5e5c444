"""`load_model` in the server: a worker of its own for the model, or the one that has it."""

from __future__ import annotations

from nnterp_mcp.session.pool import Pool
from nnterp_mcp.session.process import OnProgress
from nnterp_mcp.toolset.load_model.contract import LoadModelParams, LoadModelResult


async def handle(pool: Pool, params: LoadModelParams, on_progress: OnProgress) -> LoadModelResult:
    """Loads, joins a load under way, or finds the model loaded."""
    card, known = await pool.load(params.model_dump(mode="json"), on_progress)
    return LoadModelResult.model_validate(card | {"already_loaded": known})
