"""Probes as a picture: held-out accuracy by layer beside what it is to be judged by."""

from __future__ import annotations

from statistics import fmean

from nnterp_mcp.display.figure import Arrays, Curve, Curves, Figure
from nnterp_mcp.display.layers import on_axis
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.train_probe.result import AppliedProbe, TrainProbeResult


def figure(result: TrainProbeResult, arrays: Arrays) -> Figure:
    """Accuracy with its interval; shuffled labels from their least to their most; the two plain baselines."""
    if result.applied is not None:
        return _applied_figure(result, result.applied)
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


def _applied_figure(result: TrainProbeResult, applied: AppliedProbe) -> Figure:
    """A saved probe on other prompts: its accuracy, and the AUC of its first two groups."""
    x, names = on_axis([layer.layer for layer in result.directions])
    curves: list[Curve] = []
    rated = [layer.accuracy for layer in result.directions if layer.accuracy is not None]
    if rated:
        bands = [rate.low or 0.0 for rate in rated], [rate.high or 0.0 for rate in rated]
        curves.append(Curve("accuracy", x, [rate.mean for rate in rated], *bands))
    pairs = [layer.pairs[0] for layer in result.directions if layer.pairs]
    if pairs:
        bands = [pair.low for pair in pairs], [pair.high for pair in pairs]
        curves.append(Curve("AUC", x, [pair.auc for pair in pairs], *bands))
    if not curves:
        raise Unsupported("one group of prompts without a threshold has no accuracy and no AUC to draw.")
    groups = " · ".join(f"{quoted(elided(group.name))} {plural(group.rows, 'row')}" for group in result.groups[:6])
    return Figure(
        title=f"{applied.card.name} ({applied.card.method}) on other prompts · {result.model}",
        subtitle=f"{result.site}: {groups}",
        panels=[Curves("accuracy and AUC by layer", "layer", "share", curves, names, span=(0.0, 1.0))],
        notes=["Bands: 95 % intervals.", *in_force(result.interventions)],
    )
