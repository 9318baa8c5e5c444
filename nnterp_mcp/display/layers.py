"""Panels that several figures share: tokens by layer, and means over layers with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

from nnterp_mcp.display.figure import Colours, Curve, Heatmap, visible
from nnterp_mcp.formatting import elided, spread

MOST_LAYERS = 64
"""Rows of a picture whose cells hold text."""

EMBEDDINGS = -1.0
"""The x value of the embeddings on an axis of layers."""

_TOKEN = 18
"""Characters of a token in a cell."""

_ENDINGS = {1: "st", 2: "nd", 3: "rd"}

PROBABILITY = Colours("probability", 0.0, 1.0)


def token_table(
    title: str, across: str, columns: Sequence[str], layers: Mapping[str, Sequence[tuple[str, float]]]
) -> Heatmap:
    """Tokens by layer with their probabilities as colours, the first layer at the bottom as the stream flows upwards.

    Args:
        title: The panel's title.
        across: The label of the x axis.
        columns: The columns' names.
        layers: By the layer's name, a token with its probability for each column; of many, some are shown.
    """
    names = list(layers)
    rows = [names[at] for at in spread(range(len(names)), [0, len(names) - 1], MOST_LAYERS)][::-1]
    return Heatmap(
        title=title,
        across=across,
        down="layer",
        columns=columns,
        rows=rows,
        values=[[p for _, p in layers[row]] for row in rows],
        colours=PROBABILITY,
        labels=[[visible(elided(token, _TOKEN)) for token, _ in layers[row]] for row in rows],
    )


def mean_curve(name: str, x: Sequence[float], samples: Sequence[Sequence[float]]) -> Curve:
    """Means of probabilities with a band of one standard deviation, cut at 0 and 1; no band around single ones.

    Args:
        name: The curve's name.
        x: The x values.
        samples: The samples at each x.
    """
    means = [fmean(values) for values in samples]
    if all(len(values) == 1 for values in samples):
        return Curve(name, x, means)
    deviations = [pstdev(values) for values in samples]
    return Curve(
        name,
        x,
        means,
        low=[max(0.0, mean - sd) for mean, sd in zip(means, deviations, strict=True)],
        high=[min(1.0, mean + sd) for mean, sd in zip(means, deviations, strict=True)],
    )


def on_axis(layers: Sequence[int | None]) -> tuple[list[float], dict[float, str]]:
    """The x values of layers, None being the embeddings, and the tick labels of those that are no numbers."""
    places = [EMBEDDINGS if layer is None else float(layer) for layer in layers]
    return places, {EMBEDDINGS: "emb."} if EMBEDDINGS in places else {}


def ordinals(count: int) -> list[str]:
    """The names of ranks, of which there are at most 20: 1st, 2nd, 3rd, 4th."""
    return [f"{rank}{_ENDINGS.get(rank, 'th')}" for rank in range(1, count + 1)]
