"""The tool `edit_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.edit_model.answer import digest
from nnterp_mcp.toolset.edit_model.params import EditModelParams

SPEC = ToolSpec(
    name="edit_model",
    title="Keep edits in force",
    description=(
        "Puts interventions in force for every later call on a model, named in its answers and recorded in its runs, "
        "until they are cleared or the model is unloaded. generate's baseline stays unedited."
    ),
    params=EditModelParams,
    digest=digest,
    place="server",
    read_only=False,
)
