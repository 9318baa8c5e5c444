"""nnterp's plots and data frames: the top tokens of each layer, targets over the layers, prompts as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from nnterp_mcp.display.figure import Curve
from nnterp_mcp.display.layers import mean_curve
from nnterp_mcp.display.style import colours_of
from nnterp_mcp.model.text.tokens import token_text

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure
    from torch import Tensor

    from nnterp_mcp.nnterp.prompts import Prompt


def plot_topk_tokens(
    next_token_probs: Float[Tensor, "*rows vocabulary"],
    tokenizer: Any,
    k: int = 4,
    title: str | None = None,
    use_token_ids: bool = False,
    file: str | Path | None = None,
    save_html: bool = True,
    height: int = 300,
    width: int = 400,
) -> Figure:
    """Plots the top tokens of each layer, a cell for each with its probability.

    Args:
        next_token_probs: Probabilities (prompt, layer, vocabulary), (layer, vocabulary) or (vocabulary,).
        tokenizer: Turns ids into text.
        k: Tokens a layer.
        title: The figure's title.
        use_token_ids: Show ids instead of text.
        file: Where to write it; the format follows the name, HTML when it has no other.
        save_html: Write an HTML file beside an image.
        height: Pixels of one prompt's panel.
        width: Pixels.

    Returns:
        A figure with one panel per prompt.
    """
    from plotly.graph_objects import Heatmap
    from plotly.subplots import make_subplots

    probs = next_token_probs.detach().float().cpu()
    while probs.dim() < 3:
        probs = probs.unsqueeze(0)
    prompts, layers = probs.shape[:2]
    figure: Any = make_subplots(rows=prompts, cols=1, shared_xaxes=True)
    for row in range(prompts):
        top = probs[row].topk(k, dim=-1)
        ids = top.indices.tolist()
        text = [
            [str(token) if use_token_ids else repr(token_text(tokenizer, token)) for token in layer] for layer in ids
        ]
        figure.add_trace(
            Heatmap(
                z=top.values.tolist(),
                x=list(range(1, k + 1)),
                y=list(range(layers)),
                text=text,
                texttemplate="%{text}",
                hovertemplate="layer %{y}, rank %{x}: %{text} %{z:.3f}<extra></extra>",
                coloraxis="coloraxis",
            ),
            row=row + 1,
            col=1,
        )
    figure.update_xaxes(title_text="rank", dtick=1, row=prompts, col=1)
    figure.update_yaxes(title_text="layer", dtick=1)
    figure.update_layout(
        title=title,
        height=height * prompts,
        width=width,
        template="plotly_white",
        coloraxis={"colorscale": "Cividis", "cmin": 0, "cmax": 1, "colorbar": {"title": "probability"}},
    )
    return _saved(figure, file, save_html)


def plot_target_evolution(
    probs: Mapping[str, Float[Tensor, "*prompt layer"]],
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
    from plotly.graph_objects import Figure

    curves = [_curve(name, of) for name, of in probs.items()]
    colours = colours_of(curves)
    chart = Figure([trace for curve in curves for trace in _traces(curve, colours[curve.name])])
    chart.update_layout(
        title=title or "Target probabilities over layers",
        height=height,
        width=width,
        template="plotly_white",
        xaxis={"title": "layer"},
        yaxis={"title": "probability", "range": [0, 1]},
    )
    return _saved(chart, file, save_html)


def _traces(curve: Curve, colour: str) -> list[Any]:
    """The band of a curve, where it has one, and its line."""
    from plotly.graph_objects import Scatter

    line = Scatter(x=list(curve.x), y=list(curve.y), name=curve.name, legendgroup=curve.name, line={"color": colour})
    if curve.low is None or curve.high is None:
        return [line]
    band = Scatter(
        x=[*curve.x, *reversed(curve.x)],
        y=[*curve.high, *reversed(curve.low)],
        fill="toself",
        fillcolor=colour,
        opacity=0.16,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=curve.name,
    )
    return [band, line]


def _saved(chart: Figure, file: str | Path | None, save_html: bool) -> Figure:
    """Writes a plotly figure where a file is given: HTML, or an image, which needs kaleido."""
    path = Path(file or "")
    if file is not None and path.suffix not in ("", ".html"):
        chart.write_image(path)
    if file is not None and (save_html or path.suffix in ("", ".html")):
        chart.write_html(path.with_suffix(".html"))
    return chart


def _curve(name: str, probs: Float[Tensor, "*prompt layer"]) -> Curve:
    rows = probs.detach().float().cpu()
    rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
    return mean_curve(name, range(rows.shape[1]), rows.T.tolist())


def prompts_to_df(prompts: Sequence[Prompt], tokenizer: Any = None) -> pandas.DataFrame:
    """One row per prompt: its text, and the strings and tokens of each category.

    Args:
        prompts: The prompts.
        tokenizer: Writes token ids as tokens; ids are kept without one.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for prompt in prompts:
        row: dict[str, Any] = {"prompt": prompt.prompt}
        row |= {f"{name}_string": strings for name, strings in (prompt.target_strings or {}).items()}
        row |= {
            f"{name}_tokens": tokenizer.convert_ids_to_tokens(ids) if tokenizer is not None else ids
            for name, ids in prompt.target_tokens.items()
        }
        rows.append(row)
    return pandas.DataFrame(rows)
