"""The course of targets over the layers, as the library's `run_prompts` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float

from nnterp_mcp.display.figure import Curve, Curves
from nnterp_mcp.display.html import chart_of, save
from nnterp_mcp.display.layers import mean_curve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from torch import Tensor


def plot_target_evolution(
    probs: Mapping[str, Float[Tensor, "prompt layer"]],
    title: str | None = None,
    file: str | Path | None = None,
    save_html: bool = True,
    height: int = 460,
    width: int = 760,
) -> Figure:
    """Plots the mean probability of each target category over the layers, in a band of one standard deviation.

        results = run_prompts(model, prompts, get_probs_func=logit_lens)
        plot_target_evolution(results).show()

    Args:
        probs: Probabilities by category, (prompt, layer), or (layer,) of one prompt.
        title: The figure's title.
        file: Where to write it; the format follows the name, HTML when it has no other.
        save_html: Write an HTML file beside an image.
        height: Pixels.
        width: Pixels.

    Returns:
        A figure with a curve for each category.
    """
    curves = [_curve(name, of) for name, of in probs.items()]
    panel = Curves(title or "Target probabilities over layers", "layer", "probability", curves, span=(0.0, 1.0))
    chart = chart_of(panel).update_layout(height=height, width=width)
    if file is not None:
        save(chart, Path(file), save_html)
    return chart


def _curve(name: str, probs: Float[Tensor, "*prompt layer"]) -> Curve:
    rows = probs.detach().float().cpu()
    rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
    return mean_curve(name, range(rows.shape[1]), rows.T.tolist())
