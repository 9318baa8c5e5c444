"""How a prompt set is cut down to an answer: categories over all prompts, by layer, and the prompts that go worst."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, pstdev

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, number, plural, probability, quoted, spread
from nnterp_mcp.render import left_out, lines, shared_tokens, table
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
        f"{quoted(elided(result.categories[best]))} is the likeliest category in {_percent(wins[best])} of them, "
        f"with a mean probability of {number(mean)}."
    )


def _wins(result: RunPromptsResult) -> list[float]:
    """The share of prompts in which each category is the likeliest one."""
    winners = [max(range(len(last)), key=last.__getitem__) for row in result.rows if (last := row.probabilities[-1])]
    return [winners.count(index) / len(result.rows) for index in range(len(result.categories))]


def _categories(result: RunPromptsResult) -> Table:
    wins = _wins(result)
    rows: list[list[Cell]] = []
    for index, name in enumerate(result.categories[:_CATEGORIES]):
        values = [row.probabilities[-1][index] for row in result.rows]
        ranks = [row.ranks[-1][index] for row in result.rows]
        first = sum(rank == 1 for rank in ranks) / len(ranks)
        rows.append(
            [elided(name), fmean(values), pstdev(values), _percent(wins[index]), _percent(first), median(ranks)]
        )
    return Table(columns=["category", "mean p", "sd", "likeliest category", "top token", "median rank"], rows=rows)


def _by_layer(result: RunPromptsResult) -> Table:
    places = spread(range(len(result.layers)), [0, len(result.layers) - 1], _LAYERS)
    count = min(len(result.categories), _CATEGORIES)
    rows: list[list[Cell]] = [
        [
            result.layers[place],
            *(probability(fmean(row.probabilities[place][index] for row in result.rows)) for index in range(count)),
        ]
        for place in places
    ]
    return Table(columns=["layer", *map(elided, result.categories[:count])], rows=rows)


def _examples(result: RunPromptsResult) -> Table:
    """The prompts on which the first category is least likely; without targets, the first prompts."""
    order: Sequence[int] = range(len(result.rows))
    if result.categories:
        order = sorted(order, key=lambda index: result.rows[index].probabilities[-1][0])
    rows: list[list[Cell]] = [
        [index, elided(result.rows[index].text, 40), elided(token), p, *_first(result.rows[index])]
        for index in order[:_EXAMPLES]
        for token, p in result.rows[index].top[:1]
    ]
    named = [f"{elided(result.categories[0])} p", "rank"] if result.categories else []
    return Table(columns=["prompt", "text", "top token", "p", *named], rows=rows)


def _first(row: PromptRow) -> list[Cell]:
    return [probability(row.probabilities[-1][0]), row.ranks[-1][0]] if row.probabilities[-1] else []


def _notes(result: RunPromptsResult, shown_prompts: int) -> list[str]:
    notes = result.in_force
    if result.taken:
        notes.append(f"{plural(result.taken, 'prompt')} taken over from an equal call that did not finish.")
    notes += shared_tokens(result.shared)
    if len(result.categories) > _CATEGORIES:
        others = len(result.categories) - _CATEGORIES
        notes.append(f"Target categories not shown: {others} of {len(result.categories)}; ask for fewer at once.")
    if len(result.layers) > _LAYERS:
        notes.append(left_out(plural(len(result.layers) - _LAYERS, "layer"), "rows"))
    if shown_prompts < len(result.rows):
        hidden = plural(len(result.rows) - shown_prompts, "prompt")
        speed = number(len(result.rows) / max(result.seconds, 1e-9))
        notes.append(f"{hidden} not listed (read_run part=rows); {speed} prompts a second.")
    return notes


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"


def render(answer: RunPromptsAnswer) -> str:
    """As text; texts and tokens in quotes so that their spaces show."""
    rows = [[row[0], quoted(str(row[1])), quoted(str(row[2])), *row[3:]] for row in answer.examples.rows]
    return lines(
        answer,
        table(answer.categories) if answer.categories.rows else "",
        table(answer.by_layer) if answer.by_layer else "",
        table(Table(columns=answer.examples.columns, rows=rows)),
    )
