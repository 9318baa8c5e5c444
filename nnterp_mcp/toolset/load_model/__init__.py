"""The tool `load_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.load_model.answer import digest
from nnterp_mcp.toolset.load_model.params import LoadModelParams

SPEC = ToolSpec(
    name="load_model",
    title="Load a model",
    description=(
        "Loads an open-weight causal language model into a process of its own, where it stays warm for every other "
        "tool and every client until unload_model. Checks that readings will be exact. Loading what is loaded "
        "answers at once. The handle in the answer lives until then or until the server ends."
    ),
    params=LoadModelParams,
    digest=digest,
    place="server",
    read_only=False,
    open_world=True,
)
