"""The quality of a fitted lens, layer by layer, next to the logit lens."""

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
    shown = [result.layers[at] for at in spread(every, [0, len(every) - 1], _SHOWN)] if every else []
    hidden = len(every) - len(shown)
    divergences = {
        "KL": [layer.kl for layer in result.layers],
        "logit lens's KL": [layer.plain_kl for layer in result.layers],
    }
    return FitLensAnswer(
        finding=_finding(result),
        notes=[*_notes(result), *left_out(hidden, "layer", "layers")],
        model=result.model,
        lens=result.card.name,
        total=len(every),
        truncated=hidden > 0,
        table=tabulate(_COLUMNS, shown),
        by_layer=by_layer([layer.layer for layer in result.layers], divergences) if hidden else {},
    )


def _finding(result: FitLensResult) -> str:
    saved = f"The {result.card} of {result.model} is saved."
    if not result.layers:
        return f"{saved} The fit was stopped: the same call resumes it."
    own, plain = (fmean(values) for values in zip(*((one.kl, one.plain_kl) for one in result.layers), strict=True))
    return (
        f"{saved} On other texts, KL(last layer || layer) has a mean of {number(own)} nats over "
        f"{plural(len(result.layers), 'layer')}; the logit lens's is {number(plain)}."
    )


def _notes(result: FitLensResult) -> list[str]:
    notes = [f"{plural(result.resumed, 'prompt')} had been fitted by an earlier call."] if result.resumed else []
    if result.merged:
        notes.append(f"{plural(result.merged, 'prompt')} came with the lens that was merged.")
    if result.replaced:
        notes.append("It replaces a lens of that name.")
    if result.layers:
        notes.append(
            f"KL and agreement (the share of equal top tokens) are means over {plural(result.checked, 'token')} of "
            "built-in texts. Fit and evaluate on different prompts."
        )
    return notes
