"""The lens as a picture: its tokens by layer, and the course of the targets."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.display.figure import Arrays, Curves, Figure, Heatmap, some_of, visible
from nnterp_mcp.display.layers import mean_curve, ordinals, token_table
from nnterp_mcp.formatting import elided, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.logit_lens.result import LensReading, LogitLensResult

_READINGS = 12
"""Readings side by side."""

_RANKS = 6
"""Tokens of a layer side by side."""

_CATEGORIES = 8
"""Target categories that are drawn."""

_TITLES = {"logit": "Logit lens", "inverse": "Inverse logit lens (what is spoken against)"}


def figure(result: LogitLensResult, arrays: Arrays) -> Figure:
    """The tokens of one reading by rank or of several readings side by side, then the targets."""
    readings = result.readings
    several = len(readings) > 1
    panels = [_across(readings[:_READINGS]) if several else _alone(readings[0])]
    targets = [_targets(result)] if result.categories else []
    texts = {reading.prompt: reading.text for reading in readings[:_READINGS]}
    where = " · ".join(f"{prompt}: {quoted(elided(text, 60))}" for prompt, text in texts.items())
    where = quoted(elided(readings[0].text, 400)) if len(texts) == 1 else where
    alone = f"{where}  → after {quoted(readings[0].token)} (position {readings[0].position})"
    return Figure(
        title=f"{_TITLES[result.lens]} · {result.model}",
        subtitle=where if several else alone,
        panels=[*panels, *targets],
        notes=[*some_of(len(readings), min(len(readings), _READINGS), "readings"), *in_force(result.interventions)],
    )


def _alone(reading: LensReading) -> Heatmap:
    layers = {str(layer.layer): layer.top[:_RANKS] for layer in reading.layers}
    count = min(_RANKS, len(reading.layers[0].top))
    return token_table("top tokens", "rank", ordinals(count), layers)


def _across(readings: Sequence[LensReading]) -> Heatmap:
    """The top token of each layer at every reading."""
    prompts = len({reading.prompt for reading in readings}) > 1
    names = [
        f"{f'{reading.prompt}: ' if prompts else ''}{visible(elided(reading.token, 12))} ({reading.position})"
        for reading in readings
    ]
    layers = {
        str(layer.layer): [reading.layers[at].top[0] for reading in readings]
        for at, layer in enumerate(readings[0].layers)
    }
    across = "after token (position)" if not prompts else "prompt: after token (position)"
    return token_table("top token", across, names, layers)


def _targets(result: LogitLensResult) -> Curves:
    layers = [layer.layer for layer in result.readings[0].layers]
    several = len(result.readings) > 1
    return Curves(
        title=f"targets, mean of {len(result.readings)} readings ± 1 sd" if several else "targets",
        across="layer",
        up="probability",
        curves=[
            mean_curve(
                elided(name),
                layers,
                [[reading.layers[at].targets[index][0] for reading in result.readings] for at in range(len(layers))],
            )
            for index, name in enumerate(list(result.categories)[:_CATEGORIES])
        ],
        span=(0.0, 1.0),
    )
