"""The tool `compare_models`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.compare_models.answer import digest
from nnterp_mcp.toolset.compare_models.figure import figure
from nnterp_mcp.toolset.compare_models.params import CompareModelsParams

SPEC = ToolSpec(
    name="compare_models",
    title="Compare two models",
    description=(
        "See what a fine-tune or adapter changed: KL and top tokens, activations by layer (made there or "
        "passed on), weights by module, the mean difference on unrelated text, and where activations of one carry its "
        "behaviour into the other; next to a random change of the same norm and rank, and texts by both."
    ),
    examples=[
        {"prompts": "The capital of France is"},
        {"parts": ["predictions", "activations"]},
    ],
    params=CompareModelsParams,
    digest=digest,
    figure=figure,
    group="reading",
)
