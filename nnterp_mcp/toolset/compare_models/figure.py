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
    if result.cells:
        panels += [_grid(result, "into_base"), _grid(result, "into_model")]
    if not panels:
        bars = [Bar(f"{one.prompt}: {one.position}", one.kl) for one in result.positions[:_BARS]]
        panels.append(Bars("predictions", "KL(model ‖ base), nats", bars))
    kind = "neutral text" if result.neutral else "prompt"
    return Figure(
        title=f"{result.model} against {result.base}",
        subtitle=plural(len(result.prompts), kind),
        panels=panels,
        columns=2,
    )


def _by_layer(result: CompareModelsResult) -> Curves:
    stream = [place for place in result.places if place.site == "layers_output"]
    layers = [float(place.layer) for place in stream]
    curves = [
        Curve("change", layers, [place.change for place in stream]),
        Curve("made by the layer", layers, [place.made or 0.0 for place in stream]),
    ]
    if all(place.random is not None for place in stream):
        curves.append(Curve("random change", layers, [place.random or 0.0 for place in stream], role="control"))
    return Curves("residual stream", "layer", "‖h' - h‖ / ‖h‖", curves)


def _grid(result: CompareModelsResult, which: str) -> Heatmap:
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    layers = sorted({cell.layer for cell in result.cells}, reverse=True)
    found = {(cell.site, cell.layer): float(getattr(cell, which)) for cell in result.cells}
    title = "recovery in the base" if which == "into_base" else "recovery in the model"
    return Heatmap(
        title=title,
        across="site",
        down="layer",
        columns=sites,
        rows=[str(layer) for layer in layers],
        values=[[found.get((site, layer)) for site in sites] for layer in layers],
        colours=Colours("recovery", -1.0, 1.0),
    )
