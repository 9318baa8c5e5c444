"""The tool `load_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.load_model.answer import digest
from nnterp_mcp.toolset.load_model.params import LoadModelParams

SPEC = ToolSpec(
    name="load_model",
    title="Load a model",
    description=(
        "Call this first: loads an open-weight causal language model, which stays for every tool and client "
        "until unload_model, and checks that readings will be exact. The answer names the model's handle."
    ),
    examples=[{"model": "smollm2-135m"}],
    params=LoadModelParams,
    digest=digest,
    place="server",
    read_only=False,
    open_world=True,
    group="basics",
)
