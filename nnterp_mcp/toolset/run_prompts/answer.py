"""The answer to a prompt set: categories over all prompts, by layer, and the prompts with the least likely target."""

from __future__ import annotations

from statistics import fmean, median, median_low, pstdev

from nnterp_mcp.formatting import elided, number, percent, plural, quoted
from nnterp_mcp.render import by_layer, on_categories
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.run_prompts.result import (
    PLAIN_LENS,
    TOP,
    LensPass,
    PromptRow,
    RunPromptsAnswer,
    RunPromptsResult,
)

_CATEGORIES = 8
"""Target categories that an answer shows."""

_CURVES = 2
"""Target categories whose mean probability is shown at every layer."""

_EXAMPLES = 5
"""Prompts that an answer shows."""


def digest(result: RunPromptsResult) -> RunPromptsAnswer:
    """The categories over all prompts, their course over the layers, and the prompts that go worst."""
    examples = _examples(result)
    return RunPromptsAnswer(
        finding=_finding(result),
        notes=_notes(result, len(examples.rows)),
        model=result.model,
        total=result.asked,
        truncated=len(examples.rows) < result.asked,
        categories=_categories(result),
        by_layer=_by_layer(result),
        examples=examples,
        lenses=_lenses(result) if result.lenses else None,
    )


def _finding(result: RunPromptsResult) -> str:
    count = plural(len(result.rows), "prompt")
    if not result.categories:
        return f"{count} run on {result.model} ({result.readout}); no targets to follow."
    wins = _wins(result)
    best = max(range(len(wins)), key=wins.__getitem__)
    mean = fmean(row.probabilities[-1][best] for row in result.rows)
    on_top = fmean(row.ranks[-1][best] == 1 for row in result.rows)
    most = "" if len(wins) == 1 else f" is the most likely of {len(wins)} categories in {percent(wins[best])} of them,"
    return (
        f"{count} on {result.model} ({result.readout}, layer {result.layers[-1]}): "
        f"{quoted(elided(result.categories[best]))}{most} has a mean probability of {number(mean)} and is the top "
        f"token in {percent(on_top)}.{_comparison(result) if result.lenses else _depth(result)}"
    )


def _depth(result: RunPromptsResult) -> str:
    """The layer from which on the prompts' top token is the final one."""
    depths = sorted(row.leads_from for row in result.rows if row.leads_from is not None)
    if not depths:
        return ""
    span = f"earliest {depths[0]}, latest {depths[-1]}"
    return f" A prompt's final top token is on top from layer {median_low(depths)} on in the median ({span})."


def _comparison(result: RunPromptsResult) -> str:
    """The gain of the first fitted lens over the logit lens, on the first category."""
    lens, plain = result.lenses[0], next(lens for lens in result.lenses if lens.lens == PLAIN_LENS)
    ends = f" ({number(lens.gain.low)} to {number(lens.gain.high or 0.0)})" if lens.gain.low is not None else ""
    return (
        f" By the {result.fitted[0]}, {quoted(elided(lens.category))} enters the top {TOP} at layer "
        f"{_layer(lens.first)} in the median (logit lens: {_layer(plain.first)}); the share of layers at which it "
        f"is among them, minus the logit lens's, is {number(lens.gain.mean)}{ends}."
    )


def _layer(layer: int | None) -> int | str:
    return "none" if layer is None else layer


def _lenses(result: RunPromptsResult) -> Table:
    """The lenses by how early they have the first category's targets among their top tokens."""

    def interval(lens: LensPass) -> list[int | str] | None:
        ends = lens.first_interval
        return None if ends is None else [_layer(ends[0]), "to", _layer(ends[1])]

    several = len(result.rows) > 1
    columns: list[Column[LensPass]] = [
        Column("lens", lambda lens: lens.lens),
        Column(f"first in top {TOP}", lambda lens: _layer(lens.first)),
        Column("95 %", interval, shown=any(lens.first_interval for lens in result.lenses)),
        Column("share of layers", lambda lens: lens.share.mean, Kind.BRIEF),
        Column("minus logit lens", lambda lens: lens.gain.mean, Kind.BRIEF),
        Column("95 %", lambda lens: lens.gain, Kind.INTERVAL, several),
    ]
    return tabulate(columns, [lens for lens in result.lenses if lens.category == result.categories[0]])


def _wins(result: RunPromptsResult) -> list[float]:
    """The share of prompts in which each category is the most likely one."""
    winners = [max(range(len(last)), key=last.__getitem__) for row in result.rows if (last := row.probabilities[-1])]
    return [winners.count(index) / len(result.rows) for index in range(len(result.categories))]


def _categories(result: RunPromptsResult) -> Table:
    wins = _wins(result)

    def values(index: int) -> list[float]:
        return [row.probabilities[-1][index] for row in result.rows]

    def ranks(index: int) -> list[int]:
        return [row.ranks[-1][index] for row in result.rows]

    columns: list[Column[int]] = [
        Column("category", lambda index: elided(result.categories[index])),
        Column("mean p", lambda index: fmean(values(index))),
        Column("sd", lambda index: pstdev(values(index))),
        Column("most likely category", lambda index: wins[index], Kind.PERCENT, len(wins) > 1),
        Column("top token", lambda index: fmean(rank == 1 for rank in ranks(index)), Kind.PERCENT),
        Column("median rank", lambda index: median(ranks(index))),
    ]
    return tabulate(columns, range(min(len(result.categories), _CATEGORIES)))


def _by_layer(result: RunPromptsResult) -> dict[str, list[float]]:
    """The mean probability of the categories at every layer read; of compared lenses, how often they read the first."""
    if result.lenses:
        shares = {
            f"in top {TOP}, {lens.lens}": [layer.mean for layer in lens.in_top]
            for lens in result.lenses
            if lens.of is None and lens.category == result.categories[0]
        }
        return by_layer(result.layers, shares)
    means = {
        f"mean p of {elided(name)}": [
            fmean(row.probabilities[at][index] for row in result.rows) for at in range(len(result.layers))
        ]
        for index, name in enumerate(result.categories[:_CURVES])
    }
    return by_layer(result.layers, means) if len(result.layers) > 1 else {}


def _examples(result: RunPromptsResult) -> Table:
    """The prompts on which the first category is least likely; without targets, the first prompts."""
    rows, followed = list(enumerate(result.rows)), bool(result.categories)
    if followed:
        rows.sort(key=lambda row: row[1].probabilities[-1][0])
    columns: list[Column[tuple[int, PromptRow]]] = [
        Column("prompt", lambda row: row[0]),
        Column("text", lambda row: elided(row[1].text, 40), Kind.TEXT),
        Column("top token", lambda row: row[1].top[0][0], Kind.TOKEN),
        Column("p", lambda row: row[1].top[0][1]),
        Column("on top from layer", lambda row: row[1].leads_from, shown=len(result.layers) > 1),
        Column(
            f"{elided([*result.categories, ''][0])} p",
            lambda row: row[1].probabilities[-1][0],
            Kind.PROBABILITY,
            followed,
        ),
        Column("rank", lambda row: row[1].ranks[-1][0], shown=followed),
    ]
    return tabulate(columns, rows[:_EXAMPLES])


def _notes(result: RunPromptsResult, shown_prompts: int) -> list[str]:
    notes = result.in_force
    if result.taken:
        notes.append(f"{plural(result.taken, 'prompt')} taken over from an equal call that did not finish.")
    notes += on_categories(result.categories, result.shared, _CATEGORIES, "rows")
    if result.lenses:
        notes.append(
            f"Lenses are compared by {quoted(elided(result.categories[0]))}. Other layers' maps, and random maps with "
            "the same singular values, are controls. Other categories, and controls by layer: read_run part=lenses."
        )
    if shown_prompts < len(result.rows):
        hidden = plural(len(result.rows) - shown_prompts, "prompt")
        speed = number(len(result.rows) / max(result.seconds, 1e-9))
        notes.append(f"{hidden} not shown: read_run part=rows; {speed} prompts a second.")
    return notes
