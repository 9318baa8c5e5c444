"""A patchscope as a picture: what the target prompt says under each patch, and the course of what is tracked."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.display.figure import Arrays, Colours, Figure, Heatmap, Panel, Passages, some_of, visible
from nnterp_mcp.display.layers import (
    PROBABILITY,
    Followed,
    followed_panels,
    ordinals,
    target_names,
    token_table,
    unbroken,
)
from nnterp_mcp.formatting import elided, quoted, spread
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.patchscope.answer import marked, short_names
from nnterp_mcp.toolset.patchscope.result import PatchReading, PatchscopeResult, SourceReading

_SOURCES = 10
"""Sources side by side."""

_GRIDS = 4
"""Sources of a grid of layers that are drawn."""

_RANKS = 6
"""Tokens of a layer side by side."""

_CURVES = 8

_TEXTS = 16
"""Generated texts that are drawn."""

_LABELLED = 160
"""Cells of a grid up to which tokens are written into them."""


def figure(result: PatchscopeResult, arrays: Arrays) -> Figure:
    """The tokens of one source by rank or by pair of layers, or the most likely ones of several sources."""
    sources = result.sources[:_SOURCES]
    one = len(result.sources) == 1
    panels: list[Panel] = []
    if result.layout == "grid":
        panels += [_grid(source, result) for source in sources[:_GRIDS]]
    else:
        panels += [_alone(sources[0], result) if one else _across(sources, result)]
        panels += _tracked(sources, result) if short_names(sources[0], result) else []
    panels += _texts(sources, result)
    said = f"{_named(sources[0])} → " if one else ""
    shown = min(len(sources), _GRIDS) if result.layout == "grid" else len(sources)
    return Figure(
        title=f"Patchscope · {result.model}",
        subtitle=f"{said}{marked(result)}".replace("\n", "⏎"),
        panels=panels,
        columns=3 if len(panels) == 3 and result.layout != "grid" else 2,
        notes=[
            "The token in «» is replaced.",
            *some_of(len(result.sources), shown, "sources"),
            *in_force(result.interventions),
        ],
    )


def _named(source: SourceReading) -> str:
    if source.vector is not None:
        return elided(source.vector, 20)
    return f"{visible(elided(source.token or '', 12))} ({source.position})"


def _layer(patch: PatchReading, result: PatchscopeResult) -> str:
    return str(patch.source_layer) if result.layout == "same" else f"{patch.source_layer} → {patch.target_layer}"


def _alone(source: SourceReading, result: PatchscopeResult) -> Heatmap:
    count = min(_RANKS, len(source.unpatched.top))
    layers = {"unpatched": source.unpatched.top[:_RANKS]}
    layers |= {_layer(patch, result): patch.top[:_RANKS] for patch in source.patches}
    return token_table("what the target prompt says next", "rank", ordinals(count), layers)


def _across(sources: Sequence[SourceReading], result: PatchscopeResult) -> Heatmap:
    layers = {"unpatched": [source.unpatched.top[0] for source in sources]}
    layers |= {
        _layer(patch, result): [source.patches[at].top[0] for source in sources]
        for at, patch in enumerate(sources[0].patches)
    }
    names = [_named(source) for source in sources]
    return token_table("what the target prompt says next", "source", names, layers, focus=len(names) - 1)


def _categories(source: SourceReading, result: PatchscopeResult) -> list[str]:
    names = short_names(source, result)
    if result.categories:
        return target_names(result.categories)
    tokens = [visible(elided(token, 14)) for token in (source.token, source.answer) if token is not None]
    return [f"{name}: {token}" for name, token in zip(names, tokens, strict=True)]


def _tracked(sources: Sequence[SourceReading], result: PatchscopeResult) -> list[Panel]:
    """Each target of one source, dashed in the unpatched target prompt; or the first target of several sources."""
    if len(sources) == 1:
        chosen = [(name, sources[0], index) for index, name in enumerate(_categories(sources[0], result)[:_CURVES])]
        title = "what is tracked"
    else:
        chosen = [(f"{number}: {_named(source)}", source, 0) for number, source in enumerate(sources[:_CURVES])]
        first = target_names(result.categories) or short_names(sources[0], result)
        title = f"tracked: {elided(first[0])}"
    curves: list[Followed] = []
    for name, source, index in chosen:
        layers = [patch.source_layer for patch in source.patches]
        curves.append(Followed(name, layers, [patch.tracked[index] for patch in source.patches]))
        if len(sources) == 1:
            ends = sorted({min(layers), max(layers)})
            before = [source.unpatched.tracked[index]] * len(ends)
            curves.append(Followed(f"{name}, unpatched", ends, before, of=name))
    return [*followed_panels(title, "source layer", curves), *_by_lens(sources, result)]


def _by_lens(sources: Sequence[SourceReading], result: PatchscopeResult) -> list[Panel]:
    """The last of what is tracked in one source's states themselves, by the fitted lens and by the logit lens."""
    if result.fitted is None or len(sources) > 1:
        return []
    name, layers = _categories(sources[0], result)[-1], [state.layer for state in sources[0].states]
    curves = [
        Followed(result.fitted.kind, layers, [state.tracked[-1] for state in sources[0].states]),
        Followed("logit lens", layers, [state.plain_tracked[-1] for state in sources[0].states]),
    ]
    return list(followed_panels(f"{name}, read from the state itself", "source layer", curves))


def _texts(sources: Sequence[SourceReading], result: PatchscopeResult) -> list[Panel]:
    """What the target prompt is continued with: of one source at some layers, of several at their last patch."""
    if sources[0].unpatched.text is None:
        return []
    rows = [("unpatched", unbroken(sources[0].unpatched.text))]
    if len(sources) > 1:
        rows += [
            (f"{_named(source)}, layer {_layer(source.patches[-1], result)}", unbroken(source.patches[-1].text or ""))
            for source in sources
        ]
    else:
        patches = sources[0].patches
        at = spread(range(len(patches)), [0, len(patches) - 1], _TEXTS - 1)
        rows += [(f"layer {_layer(patches[place], result)}", unbroken(patches[place].text or "")) for place in at]
    return [Passages("generated", rows)]


def _grid(source: SourceReading, result: PatchscopeResult) -> Heatmap:
    """Source layers across, target layers upwards: how likely what is tracked first becomes, or else the top token."""
    across = sorted({patch.source_layer for patch in source.patches})
    up = sorted({patch.target_layer for patch in source.patches}, reverse=True)
    cells = {(patch.target_layer, patch.source_layer): patch for patch in source.patches}
    names = short_names(source, result)
    values = [[_value(cells[row, column], bool(names)) for column in across] for row in up]
    labels = [[visible(elided(cells[row, column].top[0][0], 12)) for column in across] for row in up]
    first = (target_names(result.categories) or names or [""])[0]
    what = f"probability of {elided(first)}" if names else "probability of the top token"
    peak = max(value for row in values for value in row)
    return Heatmap(
        title=f"from {_named(source)} (unpatched: {quoted(source.unpatched.top[0][0])})",
        across="source layer",
        down="target layer",
        columns=[str(layer) for layer in across],
        rows=[str(layer) for layer in up],
        values=values,
        colours=Colours(what, 0.0, max(peak, 1e-6) if names else PROBABILITY.high),
        labels=labels if len(cells) <= _LABELLED else None,
    )


def _value(patch: PatchReading, tracked: bool) -> float:
    return patch.tracked[0][0] if tracked else patch.top[0][1]
