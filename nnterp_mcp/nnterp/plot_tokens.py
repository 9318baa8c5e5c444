"""The likeliest tokens of each layer as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.display.html import save
from nnterp_mcp.model.text.tokens import token_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


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
    if file is not None:
        save(figure, Path(file), save_html)
    return figure
