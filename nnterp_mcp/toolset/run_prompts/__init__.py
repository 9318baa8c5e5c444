"""The tool `run_prompts`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.run_prompts.answer import digest
from nnterp_mcp.toolset.run_prompts.figure import figure
from nnterp_mcp.toolset.run_prompts.params import RunPromptsParams

SPEC = ToolSpec(
    name="run_prompts",
    title="Run a prompt set",
    description=(
        "Runs many prompts and follows target strings in their next token: by category the mean probability and its "
        "spread, how often it is the likeliest category and the top token, and the prompts that go worst. Only first "
        "tokens count (with and without a leading space), so strings that begin alike cannot be told apart."
    ),
    params=RunPromptsParams,
    digest=digest,
    figure=figure,
)
