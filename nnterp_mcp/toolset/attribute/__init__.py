"""The tool `attribute`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.attribute.answer import digest
from nnterp_mcp.toolset.attribute.figure import figure
from nnterp_mcp.toolset.attribute.params import AttributeParams

SPEC = ToolSpec(
    name="attribute",
    title="Attribute an answer to parts",
    description=(
        "Find which parts of a model produce an answer: its logit, or its difference from a wrong answer's, split "
        "among parts. direct: what layers, heads, MLPs or neurons write, or heads read from each source token (OV); "
        "adds up exactly, for up to 6 categories. gradient (× input) and integrated (gradients): tokens. patching: "
        "first-order estimates of all patches, the strongest of which are made."
    ),
    examples=[
        {"prompts": "The capital of France is", "targets": {"answer": "Paris", "wrong": "Madrid"}},
        {
            "prompts": "The capital of France is",
            "targets": {"answer": "Paris", "wrong": "Madrid"},
            "method": "patching",
            "corrupted": {"replace": "France", "with": "Spain"},
        },
        {"prompts": "The capital of France is", "targets": {"answer": "Paris"}, "method": "gradient"},
        {"prompts": "The capital of France is", "targets": {"answer": "Paris"}, "by": "neuron"},
    ],
    params=AttributeParams,
    digest=digest,
    figure=figure,
)
