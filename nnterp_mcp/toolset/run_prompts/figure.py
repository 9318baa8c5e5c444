"""A prompt set as a picture: the course of its targets over the layers, or what the model says of each."""

from __future__ import annotations

from statistics import fmean, pstdev

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Curves, Figure
from nnterp_mcp.display.layers import mean_curve
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.toolset.run_prompts.result import RunPromptsResult

_CATEGORIES = 8
"""Target categories that are drawn."""

_READOUTS = {"next_token": "next token", "logit_lens": "logit lens", "patchscope": "patchscope"}


def figure(result: RunPromptsResult, arrays: Arrays) -> Figure:
    """Mean probabilities of the categories with their spread over prompts.

    Raises:
        Unsupported: The call followed no targets, and there is nothing to draw.
    """
    if not result.categories:
        raise Unsupported("run_prompts draws targets, and this call followed none", "Give targets.")
    by_layer = len(result.layers) > 1
    cut = len(result.categories) > _CATEGORIES
    return Figure(
        title=f"Prompt set ({_READOUTS.get(result.readout, result.readout)}) · {result.model}",
        subtitle=f"{plural(len(result.rows), 'prompt')}, the first: {quoted(elided(result.rows[0].text, 200))}",
        panels=[_course(result) if by_layer else _ends(result)],
        notes=[
            "Band: one standard deviation over prompts." if by_layer else "Line: one standard deviation over prompts.",
            *([f"{_CATEGORIES} of {len(result.categories)} categories are drawn."] if cut else []),
            *result.in_force,
        ],
    )


def _course(result: RunPromptsResult) -> Curves:
    curves = [
        mean_curve(
            elided(name),
            result.layers,
            [[row.probabilities[at][index] for row in result.rows] for at in range(len(result.layers))],
        )
        for index, name in enumerate(result.categories[:_CATEGORIES])
    ]
    return Curves("targets by layer", "layer", "mean probability", curves, span=(0.0, 1.0))


def _ends(result: RunPromptsResult) -> Bars:
    bars: list[Bar] = []
    for index, name in enumerate(result.categories[:_CATEGORIES]):
        values = [row.probabilities[-1][index] for row in result.rows]
        mean, deviation = fmean(values), pstdev(values)
        bars.append(Bar(elided(name), mean, max(0.0, mean - deviation), min(1.0, mean + deviation)))
    return Bars("targets", "mean probability of the next token", bars)
