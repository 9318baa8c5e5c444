"""A prompt set as a picture: the course of its targets over the layers, or what the model says of each."""

from __future__ import annotations

from statistics import fmean, median, pstdev

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Curve, Curves, Figure, Panel
from nnterp_mcp.display.layers import mean_curve
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.toolset.run_prompts.result import TOP, RunPromptsResult

_CATEGORIES = 8
"""Target categories that are drawn."""

_READOUTS = {"next_token": "next token", "logit_lens": "logit lens", "patchscope": "patchscope"}


def figure(result: RunPromptsResult, arrays: Arrays) -> Figure:
    """Mean probabilities of the categories with their spread over prompts, and their median ranks.

    Raises:
        Unsupported: The call followed no targets, and there is nothing to draw.
    """
    if not result.categories:
        raise Unsupported("run_prompts draws targets, and this call followed none", "Give targets.")
    by_layer = len(result.layers) > 1
    cut = len(result.categories) > _CATEGORIES
    drawn = f"{'Band' if by_layer else 'Line'}{' of probabilities' if result.lenses else ''}"
    spread = f"{drawn}: one standard deviation over {plural(len(result.rows), 'prompt')}."
    return Figure(
        title=f"Prompt set ({_readout(result)}) · {result.model}",
        subtitle=f"{plural(len(result.rows), 'prompt')}, the first: {quoted(elided(result.rows[0].text, 200))}",
        panels=_course(result) if by_layer else [_ends(result)],
        notes=[
            *([spread] if len(result.rows) > 1 else []),
            *([f"{_CATEGORIES} of {len(result.categories)} categories are drawn."] if cut else []),
            *result.in_force,
        ],
    )


def _readout(result: RunPromptsResult) -> str:
    return str(result.fitted[0]) if result.fitted else _READOUTS.get(result.readout, result.readout)


def _course(result: RunPromptsResult) -> list[Panel]:
    names = list(enumerate(map(elided, result.categories[:_CATEGORIES])))
    places = range(len(result.layers))
    curves = [
        mean_curve(name, result.layers, [[row.probabilities[at][index] for row in result.rows] for at in places])
        for index, name in names
    ]
    ranks = [
        Curve(name, result.layers, [max(1.0, median(row.ranks[at][index] for row in result.rows)) for at in places])
        for index, name in names
    ]
    return [
        Curves("targets by layer", "layer", "mean probability", curves, span=(0.0, 1.0)),
        Curves("targets by layer: rank", "layer", "median rank", ranks, ranks=True),
        *([_lenses(result)] if result.lenses else []),
    ]


def _lenses(result: RunPromptsResult) -> Curves:
    """The share of prompts in which each lens has the first category's targets among its top tokens, by layer."""
    curves = [
        Curve(
            lens.lens,
            result.layers,
            [at.mean for at in lens.in_top],
            low=[at.low or 0.0 for at in lens.in_top] if several else None,
            high=[at.high or 0.0 for at in lens.in_top] if several else None,
            role="measured" if lens.of is None else "control",
            of=lens.of,
        )
        for several in [len(result.rows) > 1]
        for lens in result.lenses
        if lens.category == result.categories[0]
    ]
    title = f"{elided(result.categories[0])} in the top {TOP}, by lens (95 % intervals)"
    return Curves(title, "layer", "share of prompts", curves, span=(0.0, 1.0))


def _ends(result: RunPromptsResult) -> Bars:
    bars: list[Bar] = []
    for index, name in enumerate(result.categories[:_CATEGORIES]):
        values = [row.probabilities[-1][index] for row in result.rows]
        mean, deviation = fmean(values), pstdev(values)
        rank = max(1, median(row.ranks[-1][index] for row in result.rows))
        label = f"{elided(name)} (median rank {rank:g})"
        several = len(values) > 1
        low, high = max(0.0, mean - deviation), min(1.0, mean + deviation)
        bars.append(Bar(label, mean, low if several else None, high if several else None))
    return Bars("targets", "mean probability of the next token", bars)
