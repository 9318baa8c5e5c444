"""The tool `edit_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.edit_model.answer import digest
from nnterp_mcp.toolset.edit_model.params import EditModelParams

SPEC = ToolSpec(
    name="edit_model",
    title="Keep edits active",
    description=(
        "Keep interventions active in every later call on a model, by any client, until cleared or "
        "the model is unloaded. Answers name them; generate's baseline stays unedited."
    ),
    examples=[{"interventions": [{"op": "skip", "layers": 3}]}, {"interventions": []}],
    params=EditModelParams,
    digest=digest,
    place="server",
    read_only=False,
    group="causal",
)
