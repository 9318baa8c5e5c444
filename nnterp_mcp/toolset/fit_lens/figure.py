"""A fitted lens as a picture: divergence and agreement by layer, next to the logit lens."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Curve, Curves, Figure
from nnterp_mcp.toolset.fit_lens.result import FitLensResult


def figure(result: FitLensResult, arrays: Arrays) -> Figure:
    """Both lenses by layer."""
    layers = [layer.layer for layer in result.layers]
    own = str(result.card).split(" (", maxsplit=1)[0]
    panels = [
        Curves(
            title="KL(last layer || layer)",
            across="layer",
            up="nats",
            curves=[
                Curve(own, layers, [layer.kl for layer in result.layers]),
                Curve("logit lens", layers, [layer.plain_kl for layer in result.layers]),
            ],
        ),
        Curves(
            title="top token agrees with the model's",
            across="layer",
            up="share",
            curves=[
                Curve(own, layers, [layer.agreement for layer in result.layers]),
                Curve("logit lens", layers, [layer.plain_agreement for layer in result.layers]),
            ],
        ),
    ]
    return Figure(
        title=f"{result.card} · {result.model}",
        subtitle=f"means over {result.checked} tokens of built-in texts",
        panels=panels,
        columns=2,
    )
