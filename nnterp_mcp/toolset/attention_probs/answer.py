"""From what every head reads to an answer: the most telling heads, or the strongest heads of each query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean, median

from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force, left_out
from nnterp_mcp.table import Cell, Column, Kind, Table, tabulate
from nnterp_mcp.toolset.attention_probs.result import (
    AttentionProbsAnswer,
    AttentionProbsResult,
    HeadRead,
    HeadReading,
    QueryReading,
)

_BUDGET = 480
"""Tokens that the rows of an answer may take, about."""

_HEADS = 9
"""Heads that an answer shows."""

_NAMED = 3
"""Heads of a kind that a finding names."""

_QUERIES = 2
"""Queries that a finding describes."""

_LAYERS = 8
"""Layers that a note lists."""

_OF_A_KIND = 0.1
"""The score from which on a head is named for a kind."""

_KINDS = {"induction": "induction", "previous": "previous-token", "duplicate": "duplicate-token"}
_SHOWN = {"induction": ("induction", 4), "previous": ("previous token", 2), "duplicate": ("duplicate token", 1)}
_MASSES = ("entropy", "first", "previous", "itself", "duplicate", "induction")


def digest(result: AttentionProbsResult) -> AttentionProbsAnswer:
    """One table of heads, or of queries and heads where queries were named."""
    content, note = _by_query(result) if result.queries else _by_head(result)
    findings = [_on_query(query, result) for query in result.queries[:_QUERIES]] or [_overview(result)]
    return AttentionProbsAnswer(
        finding=" ".join([*findings, *_on_kinds(result)]),
        notes=[*note, *_notes(result)],
        model=result.model,
        total=len(result.heads),
        truncated=bool(note),
        copying=None if result.copying is None else result.copying.probability,
        table=content,
    )


def _overview(result: AttentionProbsResult) -> str:
    layers = len({head.layer for head in result.heads})
    where = f"{plural(len(result.heads), 'head')} of {plural(layers, 'layer')} on {plural(result.prompts, 'prompt')}"
    first = [head.mean.first for head in result.heads if head.mean.first is not None]
    rest = f"; {number(round(fmean(first), 2))} of their attention goes to the first token" if first else ""
    return f"{result.model}: {where}{rest}."


def _on_query(query: QueryReading, result: AttentionProbsResult) -> str:
    prompt = f" of prompt {query.prompt}" if result.prompts > 1 else ""
    where = f"{quoted(elided(query.token))} (position {query.position}{prompt})"
    strongest = max(query.heads, key=lambda head: head.strongest)
    if not strongest.keys:
        return f"{where} attends to the first token alone."
    token, at, p = strongest.keys[0]
    (common, place), count = Counter(head.keys[0][:2] for head in query.heads if head.keys).most_common(1)[0]
    first = fmean(head.first for head in query.heads)
    return (
        f"{where} attends most to {quoted(elided(token))} at {at}, in {strongest.name} ({number(round(p, 2))}); past "
        f"the first token, which gets {number(round(first, 2))} on average, the strongest key is "
        f"{quoted(elided(common))} at {place} in {count} of {plural(len(query.heads), 'head')}."
    )


def _on_kinds(result: AttentionProbsResult) -> list[str]:
    copying = result.copying
    if copying is None:
        return []
    named = "; ".join(f"{words} {_strongest(result.heads, kind)}" for kind, words in _KINDS.items())
    drawn = (
        f"{plural(copying.sequences, 'sequence')} of {copying.length} random tokens, each twice (seed {copying.seed})"
    )
    return [
        f"On {drawn}, the strongest of the {plural(len(result.heads), 'head')} read: {named}. There the "
        "right next token has a mean probability of "
        f"{number(round(copying.probability, 3))} (mean log-probability {number(copying.log_probability)} nats)."
    ]


def _score(kind: str) -> Callable[[HeadReading], float]:
    """How much a head is of a kind: on random tokens if that was measured, on the prompts otherwise."""
    return lambda head: getattr(head.kinds or head.mean, kind) or 0.0


def _sharpness(head: HeadReading) -> float:
    """How little a head spreads its attention; nothing where it rests on the first token or on none."""
    mean = head.mean
    if mean.entropy is None or mean.first is None or mean.sink is None or mean.first + mean.sink > 0.5:
        return 0.0
    return 1 / (1 + mean.entropy)


def _strongest(heads: Sequence[HeadReading], kind: str) -> str:
    found = _of_a_kind(heads, kind)[:_NAMED]
    if not found:
        return f"none reaches {_OF_A_KIND}"
    best = number(round(_score(kind)(found[0]), 2))
    return ", ".join([f"{found[0].name} ({best})", *(head.name for head in found[1:])])


def _of_a_kind(heads: Sequence[HeadReading], kind: str) -> list[HeadReading]:
    score = _score(kind)
    return sorted((head for head in heads if score(head) >= _OF_A_KIND), key=score, reverse=True)


def _by_head(result: AttentionProbsResult) -> tuple[Table, list[str]]:
    columns: list[Column[tuple[HeadReading, str | None]]] = [
        Column("head", lambda shown: shown[0].name),
        Column("shown for", lambda shown: shown[1]),
        *(_mass(name, result.heads) for name in _MASSES),
        Column(f"on random tokens: {', '.join(_KINDS)}", lambda shown: _scores(shown[0]), shown=bool(result.copying)),
        Column("strongest pair: query, key, p", lambda shown: _pair(shown[0]), Kind.TOKENS),
    ]
    content = tabulate(columns, telling(result.heads))
    return content, left_out(len(result.heads) - len(content.rows), "head", "heads", "layers and heads")


def _mass(name: str, heads: Sequence[HeadReading]) -> Column[tuple[HeadReading, str | None]]:
    measured = any(getattr(head.mean, name) is not None for head in heads)
    return Column(name, lambda shown: getattr(shown[0].mean, name), Kind.HUNDREDTHS, measured)


def _scores(head: HeadReading) -> Cell:
    return [round(_score(kind)(head), 2) for kind in _KINDS]


def _pair(head: HeadReading) -> Cell:
    return [[pair.query_token, pair.key_token, round(pair.probability, 2)] for pair in head.pairs[:1]] or None


def telling(heads: Sequence[HeadReading]) -> list[tuple[HeadReading, str | None]]:
    """The heads to show with what each is shown for; all of them in their order where they are few."""
    ranks = [(words, count, _of_a_kind(heads, kind)) for kind, (words, count) in _SHOWN.items()]
    ranks.append(("low entropy", 1, sorted(filter(_sharpness, heads), key=_sharpness, reverse=True)))
    shown: dict[str, str] = {}
    for reason, count, ranked in ranks:
        shown |= dict.fromkeys([head.name for head in ranked if head.name not in shown][:count], reason)
    named = {head.name: head for head in heads}
    order = named if len(heads) <= _HEADS else shown or list(named)[:_HEADS]
    return [(named[name], shown.get(name)) for name in order]


def _by_query(result: AttentionProbsResult) -> tuple[Table, list[str]]:
    keys = max(len(head.keys) for query in result.queries for head in query.heads)
    room = max(4, _BUDGET // (22 + 9 * max(1, keys)))
    queries = result.queries[:room]
    each = room // len(queries)
    columns: list[Column[tuple[QueryReading, HeadRead]]] = [
        Column("prompt", lambda read: read[0].prompt, shown=result.prompts > 1),
        Column("position", lambda read: read[0].position),
        Column("token", lambda read: read[0].token, Kind.TOKEN),
        Column("head", lambda read: read[1].name),
        Column("first", lambda read: read[1].first, Kind.HUNDREDTHS),
        Column("attends to: token, at, p", lambda read: _keys(read[1]), Kind.TOKENS),
    ]
    reads = [
        (query, head)
        for query in queries
        for head in sorted(query.heads, key=lambda head: head.strongest, reverse=True)[:each]
    ]
    total = sum(len(query.heads) for query in result.queries)
    hidden = total - len(reads)
    what = f"{hidden} of {plural(total, 'row')} (query and head)"
    narrow = f"{what} not shown: read_run part=queries.heads, or choose query_positions, layers and heads."
    return tabulate(columns, reads), [narrow] if hidden else []


def _keys(head: HeadRead) -> Cell:
    return [[token, at, round(p, 2)] for token, at, p in head.keys if round(p, 2)] or None


def _notes(result: AttentionProbsResult) -> list[str]:
    notes = [
        f"Without attention, and not read: {_listed(layers)} ({kind})."
        for kind, layers in result.without_attention.items()
    ]
    sinks = [head.mean.sink for head in result.heads if head.mean.sink is not None]
    if sinks and fmean(sinks) > 0.01:
        taker = "interventions or an attention sink" if result.interventions else "an attention sink"
        notes.append(
            f"Rows sum to less than 1: {number(round(fmean(sinks), 2))} of the attention on average goes to no token "
            f"({taker}); entropy counts that as one more key."
        )
    deviations = [head.deviation.first for head in result.heads if head.deviation and head.deviation.first is not None]
    if deviations and not result.queries:
        notes.append(f"Means over prompts; between prompts, first varies by {number(round(median(deviations), 2))}.")
    notes += in_force(result.interventions)
    if result.unscored:
        notes.append(f"Kinds of heads were not scored: {result.unscored}.")
    return notes


def _listed(layers: Sequence[int]) -> str:
    more = f" and {len(layers) - _LAYERS} more" if len(layers) > _LAYERS else ""
    return f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers[:_LAYERS]))}{more}"
