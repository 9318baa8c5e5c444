"""How a prompt set is cut down to an answer: categories over all prompts, by layer, and the prompts that go worst."""

from __future__ import annotations

from statistics import fmean, median, pstdev

from nnterp_mcp.formatting import elided, number, percent, plural, quoted, spread
from nnterp_mcp.render import left_out, shared_tokens
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.run_prompts.result import PromptRow, RunPromptsAnswer, RunPromptsResult

_CATEGORIES = 8
"""Target categories that an answer shows."""

_LAYERS = 12
"""Layers that an answer shows."""

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
        by_layer=_by_layer(result) if len(result.layers) > 1 and result.categories else None,
        examples=examples,
    )


def _finding(result: RunPromptsResult) -> str:
    count = plural(len(result.rows), "prompt")
    if not result.categories:
        return f"{count} run on {result.model} ({result.readout}); no targets to follow."
    wins = _wins(result)
    best = max(range(len(result.categories)), key=lambda index: wins[index])
    mean = fmean(row.probabilities[-1][best] for row in result.rows)
    return (
        f"{count} on {result.model} ({result.readout}, layer {result.layers[-1]}): "
        f"{quoted(elided(result.categories[best]))} is the likeliest category in {percent(wins[best])} of them, "
        f"with a mean probability of {number(mean)}."
    )


def _wins(result: RunPromptsResult) -> list[float]:
    """The share of prompts in which each category is the likeliest one."""
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
        Column("likeliest category", lambda index: wins[index], Kind.PERCENT),
        Column("top token", lambda index: fmean(rank == 1 for rank in ranks(index)), Kind.PERCENT),
        Column("median rank", lambda index: median(ranks(index))),
    ]
    return tabulate(columns, range(min(len(result.categories), _CATEGORIES)))


def _by_layer(result: RunPromptsResult) -> Table:
    """Mean probabilities; the rows are places among the layers."""

    def mean(place: int, index: int) -> float:
        return fmean(row.probabilities[place][index] for row in result.rows)

    columns: list[Column[int]] = [
        Column("layer", lambda place: result.layers[place]),
        *(
            Column(elided(name), lambda place, index=index: mean(place, index), Kind.PROBABILITY)
            for index, name in enumerate(result.categories[:_CATEGORIES])
        ),
    ]
    return tabulate(columns, spread(range(len(result.layers)), [0, len(result.layers) - 1], _LAYERS))


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
    notes += shared_tokens(result.shared)
    if len(result.categories) > _CATEGORIES:
        others = len(result.categories) - _CATEGORIES
        notes.append(f"Target categories not shown: {others} of {len(result.categories)}; ask for fewer at once.")
    notes += left_out(len(result.layers) - _LAYERS, "layer", "rows")
    if shown_prompts < len(result.rows):
        hidden = plural(len(result.rows) - shown_prompts, "prompt")
        speed = number(len(result.rows) / max(result.seconds, 1e-9))
        notes.append(f"{hidden} not listed (read_run part=rows); {speed} prompts a second.")
    return notes
