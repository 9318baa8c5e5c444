"""Attention as a picture: the patterns of the most telling heads; where none were kept, the shares of every head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnterp_mcp.display.figure import Array, Arrays, Colours, Figure, Heatmap, visible
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.attention_probs.answer import telling
from nnterp_mcp.toolset.attention_probs.result import AttentionProbsResult, HeadReading

_HEADS = 6
"""Patterns beside each other."""

_TOKENS = 48
"""Tokens of a pattern; of a longer prompt the last ones are drawn."""

_SHARES = {"first": "to the first token", "previous": "to the previous token", "induction": "induction"}

_Chosen = tuple[HeadReading, str | None]
"""A head, and what it is shown for."""


def figure(result: AttentionProbsResult, arrays: Arrays) -> Figure:
    """Queries by keys for each of some heads on the first prompt."""
    patterns = arrays.get("attention", arrays.get("attention_0"))
    tokens = result.tokens[0] if result.tokens else None
    chosen = _strongest(result)[:_HEADS]
    if patterns is None or tokens is None or not chosen:
        panels, notes = _shares(result), ["No patterns were kept of these prompts: each head's mean is drawn."]
    else:
        panels, notes = _patterns(result, patterns, tokens, chosen)
    text = quoted(elided("".join(tokens), 300)) if tokens else plural(result.prompts, "prompt")
    return Figure(
        title=f"Attention probabilities · {result.model}",
        subtitle=text if result.prompts == 1 or not tokens else f"the first of {result.prompts} prompts: {text}",
        panels=panels,
        columns=min(3, len(panels)),
        notes=[*notes, *in_force(result.interventions)],
    )


def _strongest(result: AttentionProbsResult) -> list[_Chosen]:
    """The heads that the answer shows; where queries were named, those that read them most sharply."""
    if not result.queries:
        return telling(result.heads)
    named = {head.name: head for head in result.heads}
    reads = [read for query in result.queries for read in query.heads]
    order = dict.fromkeys(read.name for read in sorted(reads, key=lambda read: read.strongest, reverse=True))
    return [(named[name], None) for name in order]


def _patterns(
    result: AttentionProbsResult, patterns: Array, tokens: Sequence[str], chosen: Sequence[_Chosen]
) -> tuple[list[Heatmap], list[str]]:
    start = max(0, len(tokens) - _TOKENS)
    names = [f"{visible(elided(token, 10))} {at}" for at, token in enumerate(tokens)][start:]
    read = [(head, why, patterns[result.heads.index(head)][start:, start:]) for head, why in chosen]
    beyond = [float(pattern[:, 0 if start else 1 :].max()) for _, _, pattern in read if pattern.shape[1] > 1]
    high = max(beyond, default=1.0) or 1.0
    notes = [f"Colours end at {high:.2g}, the most beyond the first token, which may take more."]
    if start:
        notes.append(f"The last {_TOKENS} of {len(tokens)} tokens are drawn.")
    colours = Colours("attention", 0.0, high)
    return [_pattern(head, why, pattern, names, colours) for head, why, pattern in read], notes


def _pattern(head: HeadReading, why: str | None, pattern: Any, names: Sequence[str], colours: Colours) -> Heatmap:
    """One head; what lies after a query is empty, as far as nothing is there."""
    values = [
        [None if key > query and value == 0 else float(value) for key, value in enumerate(row)]
        for query, row in enumerate(pattern)
    ]
    title = head.name if why is None else f"{head.name} · {why}"
    return Heatmap(title, "key", "query", names, names, values, colours)


def _shares(result: AttentionProbsResult) -> list[Heatmap]:
    """Layer by head: how much of the attention goes where, in the mean."""
    layers = sorted({head.layer for head in result.heads}, reverse=True)
    heads = sorted({head.head for head in result.heads})
    found = {(head.layer, head.head): head.mean for head in result.heads}
    panels: list[Heatmap] = []
    for name, title in _SHARES.items():
        cells = [[found.get((layer, head)) for head in heads] for layer in layers]
        values = [[None if masses is None else getattr(masses, name) for masses in row] for row in cells]
        if all(value is None for row in values for value in row):
            continue
        rows, columns = [str(layer) for layer in layers], [str(head) for head in heads]
        panels.append(Heatmap(title, "head", "layer", columns, rows, values, Colours("attention", 0.0, 1.0)))
    return panels
