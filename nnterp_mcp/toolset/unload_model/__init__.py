"""The tool `unload_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.unload_model.answer import digest
from nnterp_mcp.toolset.unload_model.params import UnloadModelParams

SPEC = ToolSpec(
    name="unload_model",
    title="Unload a model",
    description=("Free memory: ends a model's process. Calls that are running on the model end with an error."),
    examples=[{"model": "smollm2-135m"}],
    params=UnloadModelParams,
    digest=digest,
    place="server",
    read_only=False,
    destructive=True,
    group="basics",
)
