"""A steering vector as a picture: by layer, how long it is, how well it separates, how alike its directions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnterp_mcp.display.figure import Arrays, Colours, Curve, Curves, Figure, Heatmap, Panel, some_of
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, spread
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.make_vector.result import DirectionFacts, MakeVectorResult

_MOST = 48
"""Layers on a side of the grid of cosines."""

_SIDES = ("positive", "negative")

_MEASURES: Sequence[tuple[str, str, Mapping[str, str], tuple[float, float]]] = (
    ("norm", "Euclidean norm", {"vector": "norm", "states": "stream"}, (0.0, 0.0)),
    ("mean projection on the direction", "Euclidean norm", {side: side for side in _SIDES}, (0.0, 0.0)),
    ("separation of the prompts used", "Cohen's d", {"effect": "effect"}, (0.0, 0.0)),
    ("separation of held-out prompts", "AUC", {"held-out prompts": "held_out"}, (0.5, 1.0)),
    ("principal component", "share of the variance", {"share": "explained"}, (0.0, 1.0)),
)
"""Panels: the title, the unit, the curves with the field that each draws, and the smallest range."""


def figure(result: MakeVectorResult, arrays: Arrays) -> Figure:
    """Norms, separation and cosines by layer.

    Raises:
        Unsupported: The vector was deleted, or is one direction for all layers.
    """
    layers = [one.layer for one in result.directions if one.layer is not None]
    if result.deleted or not layers:
        raise Unsupported("a picture shows directions by layer, and this vector has none", "See the answer's table.")
    cosines = [_cosines(layers, arrays)] if len(layers) > 1 and "cosines" in arrays else []
    return Figure(
        title=f"Vector {elided(result.card.name, 40)} ({result.card.method.replace('_', ' ')}) · {result.model}",
        subtitle=" and ".join(f"{count} {side} prompts" for count, side in zip(result.prompts, _SIDES, strict=False)),
        panels=[*_aligned(result), *cosines] if result.alignment else [*_curves(result.directions), *cosines],
        notes=[
            *some_of(len(layers), min(len(layers), _MOST), "layers of the grid"),
            *in_force(result.interventions),
        ],
    )


def _aligned(result: MakeVectorResult) -> list[Panel]:
    """Interchange accuracies by layer."""
    rows = result.aligned
    x = [float(row.layer) for row in rows]
    randoms = [row.randoms for row in rows]
    mean = [sum(values) / len(values) for values in randoms]
    curves = [
        Curve("subspace", x, [row.accuracy for row in rows]),
        Curve("whole state", x, [row.whole for row in rows]),
        Curve("random subspaces", x, mean, list(map(min, randoms)), list(map(max, randoms)), role="control"),
        Curve("shuffled answers", x, [row.shuffled for row in rows], role="control"),
    ]
    untrained = [row.untrained for row in rows if row.untrained is not None]
    if len(untrained) == len(rows):
        curves.append(Curve("untrained model", x, untrained, role="control"))
    return [Curves("interchange accuracy", "layer", "share of pairs", curves, span=(0.0, 1.0))]


def _curves(directions: Sequence[DirectionFacts]) -> list[Panel]:
    """The measures that this method has, those of one unit together."""
    panels: list[Panel] = []
    for title, up, measures, span in _MEASURES:
        curves = [curve for name, field in measures.items() if (curve := _curve(directions, name, field)).x]
        panels += [Curves(title, "layer", up, curves, span=span)] if curves else []
    return panels


def _curve(directions: Sequence[DirectionFacts], name: str, field: str) -> Curve:
    points = [(one.layer, getattr(one, field)) for one in directions if getattr(one, field) is not None]
    return Curve(name, [layer for layer, _ in points if layer is not None], [value for _, value in points])


def _cosines(layers: Sequence[int], arrays: Arrays) -> Heatmap:
    """Cosines between the directions of each two layers; the first layer at the bottom left."""
    shown = spread(range(len(layers)), [0, len(layers) - 1], _MOST)
    between = arrays["cosines"]
    values = [[max(-1.0, min(1.0, float(between[row][column]))) for column in shown] for row in shown[::-1]]
    names = [str(layers[at]) for at in shown]
    return Heatmap(
        title="cosine between the directions of two layers",
        across="layer",
        down="layer",
        columns=names,
        rows=names[::-1],
        values=values,
        colours=Colours("cosine", -1.0, 1.0, 0.0),
        square=True,
        focus=(0, len(shown) - 1),
    )
