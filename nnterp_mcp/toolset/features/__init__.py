"""The tool `features`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.features.answer import digest
from nnterp_mcp.toolset.features.figure import figure
from nnterp_mcp.toolset.features.params import FeaturesParams

SPEC = ToolSpec(
    name="features",
    title="Features",
    description=(
        "Read features of a sparse autoencoder or transcoder: the strongest at tokens, those in which two groups "
        "differ (next to shuffled groups), or named ones, with the tokens that they promote. An active feature need "
        'not be a cause: edit it, {"op": "zero", "site": "features", "dictionary": NAME, "features": [5]} (or scale '
        "with factor; add or set with value)."
    ),
    examples=[
        {"dictionary": "d", "prompts": ["The capital of France is"]},
        {"dictionary": "d", "prompts": ["The capital of France is"], "features": [1, 2]},
        {"dictionary": "d", "prompts": {"a": ["Rome is", "Paris"], "b": ["one two three", "four"]}},
    ],
    params=FeaturesParams,
    digest=digest,
    figure=figure,
)
