"""The tool `read_run`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.read_run.answer import digest
from nnterp_mcp.toolset.read_run.params import ReadRunParams

SPEC = ToolSpec(
    name="read_run",
    title="Read a run",
    description=(
        "The answer of a run, waited for if it is under way, or all that the run holds: tables of every number, paged "
        "and filtered, arrays, and the record. Runs outlive the server."
    ),
    params=ReadRunParams,
    digest=digest,
    place="server",
)
