"""The tool `steer`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.steer.answer import digest
from nnterp_mcp.toolset.steer.figure import figure
from nnterp_mcp.toolset.steer.params import SteerParams

SPEC = ToolSpec(
    name="steer",
    title="Steer with a vector",
    description=(
        "Test whether a direction changes what a model says: adds factor × vector to the residual stream "
        "after one layer at a time, for each layer and factor, and compares the next-token distribution with "
        "the baseline: KL(steered || baseline) in nats, targets, and generated text (steered at every token) "
        "with its perplexity under the unedited model. `push` is the length added divided by the state's."
    ),
    examples=[
        {
            "prompts": "I think that my life is",
            "vector": {"positive": " good", "negative": " bad"},
            "layers": [1, 2],
            "factors": [-4, 4],
        },
        {
            "prompts": "I feel",
            "vector": {"positive": " Paris", "negative": " Rome"},
            "layers": 2,
            "factors": 3,
            "max_new_tokens": 3,
        },
    ],
    params=SteerParams,
    digest=digest,
    figure=figure,
    group="causal",
)
