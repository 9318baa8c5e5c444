"""The tool `session`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.session.answer import digest
from nnterp_mcp.toolset.session.params import SessionParams

SPEC = ToolSpec(
    name="session",
    title="What is loaded",
    description=(
        "Find what there is to work with: lists the loaded models (handle, source, device, age, memory), the "
        "latest runs for read_run, and the saved vectors. A vector fits only the weights that it was made on."
    ),
    params=SessionParams,
    digest=digest,
    place="server",
    group="basics",
)
