"""Attention as a picture: the patterns of the most telling heads; where none were kept, the shares of every head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnterp_mcp.display.figure import Array, Arrays, Colours, Figure, Heatmap, some_of, visible
from nnterp_mcp.display.layers import text_of
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.attention_probs.answer import telling
from nnterp_mcp.toolset.attention_probs.result import AttentionProbsResult, HeadReading

_HEADS = 6
"""Patterns beside each other."""

_TOKENS = 48
"""Tokens of a pattern; of a longer prompt the first one and the last ones are drawn."""

_SHARES = {"first": "to the first token", "previous": "to the previous token", "induction": "induction"}

_Chosen = tuple[HeadReading, str | None]
"""A head, and what it is shown for."""


def figure(result: AttentionProbsResult, arrays: Arrays) -> Figure:
    """Queries by keys for each of some heads on the first prompt."""
    patterns = arrays.get("attention", arrays.get("attention_0"))
    tokens = result.tokens[0] if result.tokens else None
    chosen = _strongest(result)
    if patterns is None or tokens is None or not chosen:
        panels, notes = _shares(result), ["No patterns were kept of these prompts: each head's mean is drawn."]
    else:
        panels, notes = _patterns(result, patterns, tokens, chosen[:_HEADS])
        notes += some_of(len(result.heads), len(panels), "heads")
    text = quoted(elided(text_of(tokens), 300)) if tokens else plural(result.prompts, "prompt")
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
    """Squares over the same tokens in both directions, the first token and the diagonal among them."""
    start = len(tokens) - _TOKENS + 1
    shown = [0, *range(start, len(tokens))] if start > 1 else list(range(len(tokens)))
    names = [f"{visible(elided(tokens[at], 10))} {at}" for at in shown]
    read = [(head, why, patterns[result.heads.index(head)][shown][:, shown]) for head, why in chosen]
    beyond = [float(pattern[:, 1:].max()) for _, _, pattern in read if pattern.shape[1] > 1]
    high = max(beyond, default=1.0) or 1.0
    notes = [f"Colours end at {high:.2g}, the most beyond the first token, which may take more."]
    if start > 1:
        notes.append(f"Of {len(tokens)} tokens, the first and those from position {start} on are drawn.")
    colours = Colours("attention probability", 0.0, high)
    focus = _focus(result, shown)
    return [_pattern(head, why, pattern, names, colours, focus) for head, why, pattern in read], notes


def _focus(result: AttentionProbsResult, shown: Sequence[int]) -> tuple[int, int]:
    """The query that was asked about, or the last one, on the diagonal."""
    asked = [query.position for query in result.queries if query.prompt == 0 and query.position in shown]
    at = shown.index(asked[0]) if asked else len(shown) - 1
    return at, at


def _pattern(
    head: HeadReading,
    why: str | None,
    pattern: Any,
    names: Sequence[str],
    colours: Colours,
    focus: tuple[int, int],
) -> Heatmap:
    """One head; what lies after a query is empty, as far as nothing is there."""
    values = [
        [None if key > query and value == 0 else float(value) for key, value in enumerate(row)]
        for query, row in enumerate(pattern)
    ]
    title = head.name if why is None else f"{head.name} · {why}"
    return Heatmap(title, "key", "query", names, names, values, colours, square=True, focus=focus)


def _shares(result: AttentionProbsResult) -> list[Heatmap]:
    """Layer by head: how much of the attention goes where, in the mean."""
    layers = sorted({head.layer for head in result.heads}, reverse=True)
    heads = sorted({head.head for head in result.heads})
    found = {(head.layer, head.head): head.mean for head in result.heads}
    over = f", mean over queries of {plural(result.prompts, 'prompt')}"
    panels: list[Heatmap] = []
    for name, title in _SHARES.items():
        cells = [[found.get((layer, head)) for head in heads] for layer in layers]
        values = [[None if masses is None else getattr(masses, name) for masses in row] for row in cells]
        if all(value is None for row in values for value in row):
            continue
        rows, columns = [str(layer) for layer in layers], [str(head) for head in heads]
        colours = Colours("attention probability", 0.0, 1.0)
        panels.append(Heatmap(f"{title}{over}", "head", "layer", columns, rows, values, colours))
    return panels
