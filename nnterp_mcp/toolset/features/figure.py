"""Features as a picture: the activation of the strongest features at each token of the first prompt."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Colours, Figure, Heatmap, some_of, visible
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.features.result import FeatureReading, FeaturesResult

_FEATURES = 20
_TOKENS = 48
_PROMOTED = 2
"""Tokens in the name of a row that its feature promotes."""


def figure(result: FeaturesResult, arrays: Arrays) -> Figure:
    """Features by tokens: of the first prompt, and with two groups of the first prompt of each.

    Raises:
        Unsupported: No prompts were read, or no feature is active.
    """
    activations = arrays.get("activations")
    shown = result.features[:_FEATURES]
    if activations is None or not shown:
        raise Unsupported("there are no activations to draw", "Give prompts in which features are active.")
    values = [activations[row] for row in range(len(shown))]
    firsts = [sum(result.prompts[:group]) for group in range(len(result.groups))]
    high = max((float(row.max()) for row in values), default=1.0) or 1.0
    panels: list[Heatmap] = []
    for name, prompt in zip(result.groups, firsts, strict=True):
        at = [index for index, token in enumerate(result.at_tokens) if token.prompt == prompt][:_TOKENS]
        tokens = [result.at_tokens[index] for index in at]
        panels.append(
            Heatmap(
                title=f"{elided(name)}: prompt {prompt}" if len(firsts) > 1 else f"prompt {prompt}",
                across="token",
                down="feature",
                columns=[f"{visible(elided(token.token, 10))} {token.position}" for token in tokens],
                rows=[_name(feature) for feature in shown],
                values=[[float(row[index]) for index in at] for row in values],
                colours=Colours("activation", 0.0, high),
            )
        )
    drawn = sum(len(panel.columns) for panel in panels)
    return Figure(
        title=f"Features of {result.dictionary} · {result.model}",
        subtitle=f"{result.place}; {plural(sum(result.prompts), 'prompt')}",
        panels=panels,
        notes=[
            *some_of(len(result.features), len(shown), "features"),
            *some_of(len(result.at_tokens), drawn, "tokens"),
            *in_force(result.interventions),
        ],
    )


def _name(feature: FeatureReading) -> str:
    promoted = ", ".join(visible(elided(one.token, 10)) for one in feature.promotes[:_PROMOTED])
    return f"{feature.feature} ({promoted})" if promoted else str(feature.feature)
