"""The tool `cancel_run`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.cancel_run.answer import digest
from nnterp_mcp.toolset.cancel_run.params import CancelRunParams

SPEC = ToolSpec(
    name="cancel_run",
    title="End a run",
    description=(
        "Stop a run: ends it before its next batch and answers once the model is free. "
        "What the run had finished is kept, marked partial."
    ),
    examples=[{"run_id": "logit_lens-k3f7qa"}],
    params=CancelRunParams,
    digest=digest,
    place="server",
    read_only=False,
    group="basics",
)
