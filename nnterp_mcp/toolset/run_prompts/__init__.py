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
        "Get statistics over many prompts: mean and standard deviation of target strings' probability as the "
        "next token, how often each category is most likely and the top token, the layer from which each "
        "prompt's final top token leads, and the prompts in which the first category is least likely."
    ),
    examples=[
        {
            "prompts": ["The capital of France is", "The capital of Spain is"],
            "targets": {"capital": ["Paris", "Madrid"]},
        },
        {
            "prompts": [
                {"prompt": "Rome is in", "targets": {"country": "Italy"}},
                {"prompt": "Oslo is in", "targets": {"country": "Norway"}},
            ],
            "readout": "logit_lens",
        },
    ],
    params=RunPromptsParams,
    digest=digest,
    figure=figure,
)
