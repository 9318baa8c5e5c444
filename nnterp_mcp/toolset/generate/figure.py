"""Generated or scored text as a picture: each token with the probability that the model gave it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnterp_mcp.display.figure import Arrays, Figure, Heatmap, Panel, Passages, some_of, visible
from nnterp_mcp.display.layers import PROBABILITY, text_of, unbroken
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.generate.result import Continuation, GenerateResult

_ACROSS = 10
"""Tokens in a row."""

_TOKENS = 200
"""Tokens of a text that are drawn."""

_GRIDS = 4
"""Texts that are drawn token by token."""

_TEXTS = 12
"""Texts that are written out."""

_LABEL = 14
"""Characters of a token in its cell."""


def figure(result: GenerateResult, arrays: Arrays) -> Figure:
    """The texts, and their tokens with probabilities.

    Raises:
        Unsupported: No text has a token.
    """
    runs = [
        _Written(_named(result, one.index, name), text, one.differs_at)
        for one in result.texts
        for name, text in one.runs
        if text.tokens
    ]
    if not runs:
        raise Unsupported("this run has no token to draw", "Generate some, or score longer prompts.")
    drawn = runs[:_GRIDS]
    longest = max(len(run.text.tokens) for run in drawn)
    first = quoted(elided(result.texts[0].prompt, 200))
    several = len(result.texts) > 1
    return Figure(
        title=f"{'Scored' if result.scored else 'Generated'} text · {result.model}",
        subtitle=f"{plural(len(result.texts), 'prompt')}, the first: {first}" if several else first,
        panels=[*_passages(result, runs), *(_tokens(run, result.scored) for run in drawn)],
        notes=[
            "Probabilities are those of the model that wrote the text, before temperature."
            if not result.scored
            else "Each token with its probability after the tokens before it; the first has none.",
            *some_of(len(runs), len(drawn), "texts"),
            *([f"The first {_TOKENS} tokens of a text are drawn."] if longest > _TOKENS else []),
            *in_force(result.interventions),
        ],
    )


def _named(result: GenerateResult, prompt: int, run: str) -> str:
    names = [f"prompt {prompt}"] if len(result.texts) > 1 else []
    return ", ".join([*names, *([run] if result.interventions else [])]) or "text"


@dataclass(frozen=True)
class _Written:
    """A text under its name, and the token at which those of the prompt part."""

    name: str
    text: Continuation
    differs_at: int | None

    @property
    def legible(self) -> str:
        """The text, with bytes that are no characters by their names."""
        shown = unbroken(self.text.text)
        return shown if "\ufffd" not in shown else text_of(self.text.tokens)


def _passages(result: GenerateResult, runs: list[_Written]) -> list[Panel]:
    if result.scored:
        return []
    return [Passages("generated", [(run.name, run.legible) for run in runs[:_TEXTS]])]


def _tokens(run: _Written, scored: bool) -> Heatmap:
    """The tokens in rows, as they are read; opens where the texts part, or at the least likely token."""
    tokens, log_probs = run.text.tokens[:_TOKENS], run.text.log_probs[:_TOKENS]
    across = min(_ACROSS, len(tokens))
    starts = range(0, len(tokens), across)
    values: list[float | None] = [*map(math.exp, log_probs)]
    labels = [visible(elided(token, _LABEL)) for token in tokens]
    missing = -len(tokens) % across
    values, labels = values + [None] * missing, labels + [""] * missing
    least = min(range(len(tokens)), key=log_probs.__getitem__)
    at = run.differs_at if run.differs_at is not None and run.differs_at < len(tokens) else least
    first = 1 if scored else 0
    return Heatmap(
        title=f"{run.name}: probability of each token",
        across="+",
        down="prompt token" if scored else "new token",
        columns=[str(at) for at in range(across)],
        rows=[str(first + start) for start in starts],
        values=[values[start : start + across] for start in starts],
        colours=PROBABILITY,
        labels=[labels[start : start + across] for start in starts],
        focus=(at // across, at % across),
    )
