"""The tool `cancel_run`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.cancel_run.answer import digest
from nnterp_mcp.toolset.cancel_run.params import CancelRunParams

SPEC = ToolSpec(
    name="cancel_run",
    title="End a run",
    description=(
        "Ends a run under way before its next batch, and answers once the model is free. What it had is kept, marked "
        "partial."
    ),
    params=CancelRunParams,
    digest=digest,
    place="server",
    read_only=False,
)
