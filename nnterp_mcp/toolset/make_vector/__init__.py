"""The tool `make_vector`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.make_vector.answer import digest
from nnterp_mcp.toolset.make_vector.figure import figure
from nnterp_mcp.toolset.make_vector.params import MakeVectorParams

SPEC = ToolSpec(
    name="make_vector",
    title="Make a steering vector",
    description=(
        "Make a named direction of the residual stream, tested on unseen prompts. mean_difference: mean state "
        "after each layer over `positive` minus `negative`; principal_component: of pairs' differences; "
        "activation: of one prompt; (un)embedding_difference: between tokens; alignment_search (DAS): the "
        "subspace that carries a pair's answer from its `negative` state to its `positive` prompt."
    ),
    examples=[
        {
            "name": "joy",
            "method": "mean_difference",
            "positive": ["I love this film so", "She smiled and was very", "What a wonderful day, I feel"],
            "negative": ["I hate this film so", "She wept and was very", "What a terrible day, I feel"],
        },
        {"name": "chance", "method": "random", "norm": 2.0, "seed": 7},
    ],
    params=MakeVectorParams,
    digest=digest,
    figure=figure,
    read_only=False,
    destructive=True,
    group="causal",
)
