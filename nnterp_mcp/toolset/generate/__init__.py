"""The tool `generate`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.generate.answer import digest
from nnterp_mcp.toolset.generate.figure import figure
from nnterp_mcp.toolset.generate.params import GenerateParams

SPEC = ToolSpec(
    name="generate",
    title="Generate text",
    description=(
        "Read what a model writes, or with max_new_tokens 0 score given texts; with interventions, the unedited "
        "baseline and the edited model from the same seed. Interventions act at new tokens too where positions are "
        "'all', 'last' or an open range such as '1:', unless steps says otherwise (0 is the prompt, 1 the first new "
        "token). Log-probabilities, in nats, are those of the model that wrote the text, before temperature."
    ),
    examples=[
        {"prompts": "The capital of France is"},
        {
            "prompts": ["Once upon a time", "I feel"],
            "max_new_tokens": 3,
            "temperature": 1.0,
            "seed": 7,
            "interventions": [{"op": "zero", "site": "heads_output", "layers": [1, 2], "heads": [0, 3]}],
        },
    ],
    params=GenerateParams,
    digest=digest,
    figure=figure,
    group="causal",
)
