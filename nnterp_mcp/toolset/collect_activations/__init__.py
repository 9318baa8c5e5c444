"""The tool `collect_activations`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.collect_activations.answer import digest
from nnterp_mcp.toolset.collect_activations.figure import figure
from nnterp_mcp.toolset.collect_activations.params import CollectActivationsParams

SPEC = ToolSpec(
    name="collect_activations",
    title="Collect activations",
    description=(
        "Keep hidden states for read_run, train_probe and the op patch (from.run), and see how far groups of "
        "prompts lie apart: by layer norms, cosine and gap between group means next to those of random "
        "groups, and principal components."
    ),
    examples=[
        {"prompts": {"positive": ["I love this film", "I won"], "negative": ["I hate this film", "I lost"]}},
        {"prompts": ["Rome is", "one two three"], "positions": "all", "layers": "1:3"},
    ],
    params=CollectActivationsParams,
    digest=digest,
    figure=figure,
)
