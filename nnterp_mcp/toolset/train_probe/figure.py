"""Probes as a picture: held-out accuracy by layer beside what it is to be judged by."""

from __future__ import annotations

from statistics import fmean

from nnterp_mcp.display.figure import Arrays, Curve, Curves, Figure
from nnterp_mcp.display.layers import on_axis
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.train_probe.result import TrainProbeResult


def figure(result: TrainProbeResult, arrays: Arrays) -> Figure:
    """Accuracy with its interval; shuffled labels from their least to their most; the two plain baselines."""
    layers = result.layers
    x, names = on_axis([layer.layer for layer in layers])
    ends = sorted({x[0], x[-1]})
    curves = [
        Curve(
            "held-out accuracy",
            x,
            [layer.accuracy for layer in layers],
            [layer.low for layer in layers],
            [layer.high for layer in layers],
        ),
        Curve(
            "shuffled labels",
            x,
            [fmean(layer.shuffled) for layer in layers],
            [min(layer.shuffled) for layer in layers],
            [max(layer.shuffled) for layer in layers],
            role="control",
        ),
        Curve("largest class", ends, [result.majority] * len(ends), role="control"),
        Curve("prompt length", ends, [result.length] * len(ends), role="control"),
    ]
    groups = " · ".join(f"{quoted(elided(group.name))} {plural(group.rows, 'row')}" for group in result.groups[:6])
    return Figure(
        title=f"{result.method.replace('_', ' ').capitalize()} probes · {result.model}",
        subtitle=f"{result.site}: {groups}",
        panels=[Curves("accuracy by layer", "layer", "share of held-out rows", curves, names, span=(0.0, 1.0))],
        notes=[
            f"Bands: 95 % interval of the accuracy; the range of {plural(len(layers[0].shuffled), 'shuffle')}.",
            *in_force(result.interventions),
        ],
    )
