"""The tool `session`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.session.answer import digest
from nnterp_mcp.toolset.session.params import SessionParams

SPEC = ToolSpec(
    name="session",
    title="What is loaded",
    description=(
        "Lists the loaded models (handle, source, device, since when, the memory that each holds), the latest runs "
        "(for read_run) and the vectors that make_vector kept; a vector serves only the weights that it was made on."
    ),
    params=SessionParams,
    digest=digest,
    place="server",
)
