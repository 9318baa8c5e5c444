"""The tool `attention_probs`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.attention_probs.answer import digest
from nnterp_mcp.toolset.attention_probs.figure import figure
from nnterp_mcp.toolset.attention_probs.params import AttentionProbsParams

SPEC = ToolSpec(
    name="attention_probs",
    title="Attention probabilities",
    description=(
        "See which tokens heads read: by head the entropy (nats) and attention to the first, previous and "
        "same token, to earlier copies of the query (duplicate) and to what followed those (induction), with "
        "the strongest pairs; with query_positions, what these tokens read. "
        "Attention shows where information could be read, not its use."
    ),
    examples=[
        {"prompts": "The capital of France is"},
        {"prompts": ["A B A B A", "one two"], "layers": "1:3", "query_positions": "last"},
    ],
    params=AttentionProbsParams,
    digest=digest,
    figure=figure,
)
