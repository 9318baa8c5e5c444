"""The tool `read_run`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.read_run.answer import digest
from nnterp_mcp.toolset.read_run.params import ReadRunParams

SPEC = ToolSpec(
    name="read_run",
    title="Read a run",
    description=(
        "Wait for a run, or read all that it holds: its answer, tables of every number (paged and filtered), "
        "arrays, and the record of how it was made."
    ),
    examples=[
        {"run_id": "logit_lens-k3f7qa"},
        {"run_id": "logit_lens-k3f7qa", "part": "readings.layers", "where": {"layer": 1}},
    ],
    params=ReadRunParams,
    digest=digest,
    place="server",
    group="basics",
)
