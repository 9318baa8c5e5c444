"""Two models as a picture: the change by layer, the weights by module, and what carries the behaviour over."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Colours, Curve, Curves, Figure, Heatmap, Panel
from nnterp_mcp.formatting import plural
from nnterp_mcp.toolset.compare_models.result import CompareModelsResult

_BARS = 20


def figure(result: CompareModelsResult, arrays: Arrays) -> Figure:
    """A panel for each part that has numbers."""
    panels: list[Panel] = []
    if result.places:
        panels.append(_by_layer(result))
    if result.modules:
        bars = [Bar(one.module, one.relative) for one in result.modules[:_BARS]]
        panels.append(Bars("weights", "‖dW‖ / ‖W‖", bars))
    if result.steering:
        panels.append(_steering(result))
    if any(one.other is not None for one in result.differences):
        panels.append(_cosines(result))
    if result.cells:
        panels += [_grid(result, "into_base"), _grid(result, "into_model")]
    if any(cell.other is not None for cell in result.cells):
        panels.append(_grid(result, "other"))
    if not panels:
        panels.append(_predictions(result))
    kind = "neutral text" if result.neutral else "prompt"
    return Figure(
        title=f"{result.model} against {result.base}",
        subtitle=plural(len(result.prompts), kind),
        panels=panels,
        columns=2,
    )


def _predictions(result: CompareModelsResult) -> Bars:
    strongest = sorted(result.positions, key=lambda one: -one.kl)[:_BARS]
    bars = [Bar(f"{one.prompt}: {one.position} {one.token}", one.kl) for one in strongest]
    given = " given a token of both" if result.by_text else ""
    return Bars("predictions", f"KL(model ‖ base){given}, nats", bars)


def _steering(result: CompareModelsResult) -> Curves:
    strengths = [one.strength for one in result.steering]
    curves = [
        Curve("mean difference", strengths, [one.kl for one in result.steering]),
        Curve("random directions", strengths, [one.random for one in result.steering], role="control"),
    ]
    return Curves(
        f"base steered after layer {result.steered_layer}", "strength", "KL(model ‖ steered base), nats", curves
    )


def _cosines(result: CompareModelsResult) -> Curves:
    curves: list[Curve] = []
    for name, early in (("all positions", False), ("positions 1 to 4", True)):
        rows = [one for one in result.differences if one.early is early and one.size > 0]
        curves.append(Curve(name, [float(one.layer) for one in rows], [one.other or 0.0 for one in rows]))
    return Curves(f"mean difference and that of {result.other}", "layer", "cosine", curves)


def _by_layer(result: CompareModelsResult) -> Curves:
    stream = [place for place in result.places if place.site == "layers_output"]
    layers = [float(place.layer) for place in stream]
    curves = [Curve("change", layers, [place.change for place in stream])]
    if all(place.made is not None for place in stream):
        curves.append(Curve("made by the layer", layers, [place.made or 0.0 for place in stream]))
    if all(place.random is not None for place in stream):
        curves.append(Curve("random change", layers, [place.random or 0.0 for place in stream], role="control"))
    if all(place.other is not None for place in stream):
        curves.append(Curve(str(result.other), layers, [place.other or 0.0 for place in stream], role="control"))
    return Curves("residual stream", "layer", "‖h' - h‖ / ‖h‖", curves)


def _grid(result: CompareModelsResult, which: str) -> Heatmap:
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    layers = sorted({cell.layer for cell in result.cells}, reverse=True)
    found = {(cell.site, cell.layer): float(getattr(cell, which)) for cell in result.cells}
    title = {
        "into_base": "recovery in the base",
        "into_model": "recovery in the model",
        "other": f"recovery in the base with those of {result.other}",
    }[which]
    return Heatmap(
        title=title,
        across="site",
        down="layer",
        columns=sites,
        rows=[str(layer) for layer in layers],
        values=[[found.get((site, layer)) for site in sites] for layer in layers],
        colours=Colours("recovery", -1.0, 1.0),
    )
