"""How a collection is cut down to an answer: what is kept, and how it lies by layer."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from nnterp_mcp.formatting import elided, number, plural, quoted, size, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_means
from nnterp_mcp.table import Column, Table, tabulate
from nnterp_mcp.toolset.collect_activations.result import (
    CollectActivationsAnswer,
    CollectActivationsResult,
    CollectedLayer,
    GroupsApart,
)

_BUDGET = 500
"""Tokens that the rows of the table and the line of all layers may take, about."""

_ROW = 45
"""Tokens of a row, about."""

_GROUPS = 4
"""Groups whose lengths an answer shows."""

_FEW = 8
"""Prompts of a group below which its mean says little."""


def digest(result: CollectActivationsResult) -> CollectActivationsAnswer:
    """The states that were collected, with their geometry in some of the layers."""
    widest = max(result.summaries, key=_gap, default=None)
    marks = [0, len(result.summaries) - 1, *([result.summaries.index(widest)] if widest else [])]
    room = max(4, (_BUDGET - PER_LAYER * len(result.summaries)) // _ROW)
    shown = [result.summaries[at] for at in spread(range(len(result.summaries)), marks, room)]
    return CollectActivationsAnswer(
        finding=_finding(result, widest),
        notes=_notes(result, len(result.summaries) - len(shown)),
        model=result.model,
        total=result.asked,
        truncated=len(shown) < len(result.summaries),
        table=_table(result, shown),
        by_layer=_every_layer(result) if len(shown) < len(result.summaries) else {},
    )


def _every_layer(result: CollectActivationsResult) -> dict[str, list[float]]:
    """The gap between groups at each layer; the norm where there is one group, or too many to compare."""
    summaries = [summary for summary in result.summaries if summary.layer is not None]
    layers = [summary.layer for summary in summaries if summary.layer is not None]
    if summaries[0].pairs:
        return by_layer(layers, {"gap": [_gap(summary) for summary in summaries]})
    return by_layer(layers, {"norm": [fmean(group.norm for group in summary.groups) for summary in summaries]})


def _mean(summary: CollectedLayer, figure: Callable[[GroupsApart], float]) -> float:
    """A figure in the mean over pairs of groups; 0 without pairs."""
    return fmean(map(figure, summary.pairs)) if summary.pairs else 0.0


def _gap(summary: CollectedLayer) -> float:
    return _mean(summary, lambda pair: pair.gap)


def _finding(result: CollectActivationsResult, widest: CollectedLayer | None) -> str:
    where = f"{result.site} of {plural(len(result.layers), 'layer')}" if result.layers != [None] else result.site
    states = f"{plural(len(result.rows), 'state')} of {plural(len(result.prompts), 'prompt')}"
    kept = f"{states} ({where}) of {result.model} are kept in the array states: {size(result.bytes)}."
    if widest is None or not widest.pairs:
        return kept
    chance = number(_mean(widest, lambda pair: pair.shuffled_gap))
    names = " and ".join(quoted(elided(name)) for name in result.groups)
    means = f"The means of {names}" if len(result.groups) == 2 else f"The means of {len(result.groups)} groups"
    place = "there" if widest.layer is None else f"at layer {widest.layer}"
    return (
        f"{kept} {means} lie furthest apart {place}, by {number(_gap(widest))} of a state's mean length "
        f"(prompts assigned at random: {chance})."
    )


def _table(result: CollectActivationsResult, shown: list[CollectedLayer]) -> Table:
    names = result.groups[:_GROUPS]
    labels = ["norm"] if len(result.groups) == 1 else [f"norm {elided(name)}" for name in names]
    pairs = any(summary.pairs for summary in shown)
    components = max((len(summary.explained) for summary in shown), default=0)
    columns: list[Column[CollectedLayer]] = [
        Column("layer", lambda summary: "embeddings" if summary.layer is None else summary.layer),
        *(Column(label, lambda summary, at=at: summary.groups[at].norm) for at, label in enumerate(labels)),
        *(Column(name, lambda summary, of=of: _mean(summary, of), shown=pairs) for name, of in _APART.items()),
        *(Column(f"PC{at + 1}", lambda summary, at=at: _explained(summary, at)) for at in range(components)),
    ]
    return tabulate(columns, shown)


_APART: dict[str, Callable[[GroupsApart], float]] = {
    "cosine": lambda pair: pair.cosine,
    "random cosine": lambda pair: pair.shuffled,
    "gap": lambda pair: pair.gap,
    "random gap": lambda pair: pair.shuffled_gap,
}


def _explained(summary: CollectedLayer, component: int) -> float | None:
    return summary.explained[component] if component < len(summary.explained) else None


def _notes(result: CollectActivationsResult, hidden: int) -> list[str]:
    notes = on_means(result.first_left_out, result.dominant and result.dominant.warning)
    notes += in_force(result.interventions)
    if len(result.rows) < result.asked:
        notes.append(f"{plural(result.asked - len(result.rows), 'row')} of {result.asked} were not read: NaN.")
    if len(result.groups) > 1 and result.summaries and not result.summaries[0].pairs:
        notes.append(f"{len(result.groups)} groups are too many to compare in pairs: give fewer for cosine and gap.")
    elif len(result.groups) > 1 and result.summaries:
        over = " Figures are means over pairs of groups." if len(result.groups) > 2 else ""
        notes.append(
            "cosine and gap: between the groups' means, gap as a share of a state's mean length; random: with prompts "
            f"assigned to groups at random.{over}"
        )
    if any(summary.explained for summary in result.summaries):
        of = f", from {result.fitted} rows evenly spaced" if result.fitted < len(result.rows) else ""
        notes.append(f"PC: share of the variance along a principal component of all rows{of} (array components).")
    notes += left_out(len(result.groups) - _GROUPS, "group", "summaries.groups")
    notes += _small_groups(result)
    notes += left_out(hidden, "layer", "summaries")
    notes.append("The part rows says which row is what; the op patch takes states by from.run.")
    return notes


def _small_groups(result: CollectActivationsResult) -> list[str]:
    counts = {name: sum(prompt.group == name for prompt in result.prompts) for name in result.groups}
    few = [f"{quoted(elided(name))} ({count})" for name, count in counts.items() if count < _FEW]
    return [f"Few prompts for a mean: {', '.join(few[:_GROUPS])}."] if few and len(counts) > 1 else []
