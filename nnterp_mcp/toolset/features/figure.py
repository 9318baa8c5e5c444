"""Features as a picture: the activation of the strongest features at each token of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.display.figure import Arrays, Colours, Figure, Heatmap, some_of, visible
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.features.result import FeatureReading, FeaturesResult

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

_FEATURES = 20
_TOKENS = 48
_PROMOTED = 2
"""Tokens in the name of a row that its feature promotes."""


def figure(result: FeaturesResult, arrays: Arrays) -> Figure:
    """Features by tokens, of the prompt in which the first feature is strongest; with two groups one prompt of each.

    Raises:
        Unsupported: No prompts were read, or no feature is active.
    """
    activations = arrays.get("activations")
    shown = result.features[:_FEATURES]
    if activations is None or not shown:
        raise Unsupported("there are no activations to draw", "Give prompts in which features are active.")
    values = [activations[row] for row in range(len(shown))]
    chosen = _strongest_prompts(result, values[0])
    high = max((float(row.max()) for row in values), default=1.0) or 1.0
    panels: list[Heatmap] = []
    for name, prompt in zip(result.groups, chosen, strict=True):
        at = [index for index, token in enumerate(result.at_tokens) if token.prompt == prompt][:_TOKENS]
        tokens = [result.at_tokens[index] for index in at]
        panels.append(
            Heatmap(
                title=f"{elided(name)}: prompt {prompt}" if len(chosen) > 1 else f"prompt {prompt}",
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
            f"The prompt {'of each group ' * (len(chosen) > 1)}in which feature {shown[0].feature} is strongest.",
            *some_of(len(result.features), len(shown), "features"),
            *some_of(len(result.at_tokens), drawn, "tokens"),
            *in_force(result.interventions),
        ],
    )


def _strongest_prompts(result: FeaturesResult, activations: Float[np.ndarray, " token"]) -> list[int]:
    """Of each group, the prompt with the token at which a feature is strongest; the first where it is silent."""
    found: list[int] = []
    for group, count in enumerate(result.prompts):
        begin = sum(result.prompts[:group])
        of_group = [at for at, token in enumerate(result.at_tokens) if begin <= token.prompt < begin + count]
        strongest = max(of_group, key=lambda at: float(activations[at]), default=None)
        found.append(begin if strongest is None else result.at_tokens[strongest].prompt)
    return found


def _name(feature: FeatureReading) -> str:
    promoted = ", ".join(visible(elided(one.token, 10)) for one in feature.promotes[:_PROMOTED])
    return f"{feature.feature} ({promoted})" if promoted else str(feature.feature)
