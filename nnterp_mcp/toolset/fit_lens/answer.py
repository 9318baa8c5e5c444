"""How well a fitted lens reads, layer by layer, next to the logit lens."""

from __future__ import annotations

from statistics import fmean

from nnterp_mcp.formatting import number, plural, spread
from nnterp_mcp.render import by_layer, left_out
from nnterp_mcp.table import Column, tabulate
from nnterp_mcp.toolset.fit_lens.result import FitLensAnswer, FitLensResult, LensFit

_SHOWN = 8
"""Layers in the table."""

_COLUMNS: list[Column[LensFit]] = [
    Column("layer", lambda layer: layer.layer),
    Column("KL(last layer || layer)", lambda layer: layer.kl),
    Column("logit lens's KL", lambda layer: layer.plain_kl),
    Column("agreement", lambda layer: layer.agreement),
    Column("logit lens's agreement", lambda layer: layer.plain_agreement),
]


def digest(result: FitLensResult) -> FitLensAnswer:
    """Some of the layers in a table, and both divergences at all of them."""
    every = range(len(result.layers))
    shown = [result.layers[at] for at in spread(every, [0, len(every) - 1], _SHOWN)]
    hidden = len(every) - len(shown)
    divergences = {
        "KL with it": [layer.kl for layer in result.layers],
        "KL with the logit lens": [layer.plain_kl for layer in result.layers],
    }
    return FitLensAnswer(
        finding=_finding(result),
        notes=[
            *([f"{result.merged} of the prompts are those of the merged lens."] if result.merged else []),
            f"KL, and agreement of top tokens with the model's, are means over {plural(result.checked, 'token')} of "
            "built-in texts.",
            *(["A lens of that name was replaced."] if result.replaced else []),
            *left_out(hidden, "layer", "layers"),
        ],
        model=result.model,
        lens=result.card.name,
        total=len(result.layers),
        truncated=hidden > 0,
        table=tabulate(_COLUMNS, shown),
        by_layer=by_layer([layer.layer for layer in result.layers], divergences) if hidden else {},
    )


def _finding(result: FitLensResult) -> str:
    own, plain = (fmean(values) for values in zip(*((one.kl, one.plain_kl) for one in result.layers), strict=True))
    return (
        f"The {result.card} of {result.model} is kept. On other texts KL(last layer || layer) is {number(own)} nats in "
        f"the mean over {plural(len(result.layers), 'layer')}, and {number(plain)} with the logit lens."
    )
