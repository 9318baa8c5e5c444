"""The lens as a picture: its tokens by layer, and the course of the targets."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.display.figure import Arrays, Colours, Figure, Heatmap, Panel, visible
from nnterp_mcp.display.layers import Followed, followed_panels, ordinals, target_names, token_table
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.logit_lens.result import LensReading, LogitLensResult

_READINGS = 14
"""Readings side by side."""

_CURVES = 6
"""Readings up to which each has a curve; of more, targets are drawn as grids."""

_RANKS = 6
"""Tokens of a layer side by side."""

_CATEGORIES = 8
"""Target categories that are drawn of one reading."""

_FEW_CATEGORIES = 3
"""Of several readings."""

_TITLES = {"logit": "Logit lens", "inverse": "Inverse logit lens (the tokens that a layer most demotes)"}


def figure(result: LogitLensResult, arrays: Arrays) -> Figure:
    """The tokens of one reading by rank or of several readings side by side, then the targets."""
    readings = _last(result.readings)
    several = len(result.readings) > 1
    texts = {reading.prompt: reading.text for reading in readings}
    where = " · ".join(f"{prompt}: {quoted(elided(text, 60))}" for prompt, text in texts.items())
    where = quoted(elided(readings[0].text, 400)) if len(texts) == 1 else where
    alone = f"{where}  → after {quoted(readings[0].token)} (position {readings[0].position})"
    return Figure(
        title=f"{result.fitted or _TITLES[result.lens]} · {result.model}",
        subtitle=where if several else alone,
        panels=[_across(readings), *_by_reading(readings, result)] if several else _alone(readings[0], result),
        columns=2 if several else 3,
        notes=[*_drawn(readings, result), *in_force(result.interventions)],
    )


def _last(readings: Sequence[LensReading]) -> list[LensReading]:
    """The last readings of each prompt, as many of each as fit."""
    of_prompt: dict[int, list[LensReading]] = {}
    for reading in readings:
        of_prompt.setdefault(reading.prompt, []).append(reading)
    each = max(1, _READINGS // len(of_prompt))
    return [reading for some in of_prompt.values() for reading in some[-each:]][:_READINGS]


def _drawn(readings: Sequence[LensReading], result: LogitLensResult) -> list[str]:
    count, prompts = len(result.readings), len({reading.prompt for reading in result.readings})
    notes: list[str] = []
    if len(readings) < count:
        which = f"positions {readings[0].position} to {readings[-1].position}" if prompts == 1 else "of each prompt"
        notes.append(f"{len(readings)} of {count} readings are drawn, the last ones ({which}).")
    most = _CATEGORIES if count == 1 else _FEW_CATEGORIES
    if len(result.categories) > most:
        notes.append(f"{most} of {plural(len(result.categories), 'target category').replace('ys', 'ies')} are drawn.")
    return notes


def _alone(reading: LensReading, result: LogitLensResult) -> list[Panel]:
    layers = {str(layer.layer): layer.top[:_RANKS] for layer in reading.layers}
    count = min(_RANKS, len(reading.layers[0].top))
    names = target_names(result.categories)[:_CATEGORIES]
    x = [layer.layer for layer in reading.layers]
    curves = [Followed(name, x, [layer.targets[index] for layer in reading.layers]) for index, name in enumerate(names)]
    table = token_table("top tokens", "rank", ordinals(count), layers)
    return [table, *(followed_panels("targets", "layer", curves) if curves else [])]


def _names(readings: Sequence[LensReading]) -> list[str]:
    prompts = len({reading.prompt for reading in readings}) > 1
    return [
        f"{f'{reading.prompt}: ' if prompts else ''}{visible(elided(reading.token, 12))} ({reading.position})"
        for reading in readings
    ]


def _across(readings: Sequence[LensReading]) -> Heatmap:
    """The top token of each layer at every reading."""
    layers = {
        str(layer.layer): [reading.layers[at].top[0] for reading in readings]
        for at, layer in enumerate(readings[0].layers)
    }
    prompts = len({reading.prompt for reading in readings}) > 1
    across = "prompt: after token (position)" if prompts else "after token (position)"
    return token_table("top token", across, _names(readings), layers, focus=len(readings) - 1)


def _by_reading(readings: Sequence[LensReading], result: LogitLensResult) -> list[Panel]:
    """Each target at every reading by itself: what readings share is not known, so that nothing is averaged."""
    panels: list[Panel] = []
    for index, name in enumerate(target_names(result.categories)[:_FEW_CATEGORIES]):
        values = [[layer.targets[index] for layer in reading.layers] for reading in readings]
        layers = [layer.layer for layer in readings[0].layers]
        if len(readings) <= _CURVES:
            curves = [Followed(label, layers, own) for label, own in zip(_names(readings), values, strict=True)]
            panels += followed_panels(name, "layer", curves)
        else:
            panels.append(_grid(name, layers, values, _names(readings)))
    return panels


def _grid(
    name: str, layers: Sequence[int], values: Sequence[Sequence[tuple[float, int]]], columns: Sequence[str]
) -> Heatmap:
    order = range(len(layers))[::-1]
    peak = max(p for own in values for p, _ in own)
    return Heatmap(
        title=f"{name}: probability (colour) and rank (number)",
        across="after token (position)",
        down="layer",
        columns=columns,
        rows=[str(layers[at]) for at in order],
        values=[[own[at][0] for own in values] for at in order],
        colours=Colours("probability", 0.0, peak or 1.0),
        labels=[[_short(own[at][1]) for own in values] for at in order],
    )


def _short(rank: int) -> str:
    return str(rank) if rank < 10_000 else f"{rank // 1000}k"
