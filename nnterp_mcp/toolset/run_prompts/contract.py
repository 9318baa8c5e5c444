"""`run_prompts`: what it takes and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, pstdev
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from nnterp_mcp.contract import Answer, Cell, ModelParams, Result, Table, TableField, ToolSpec
from nnterp_mcp.fields import Layers, Prompt, Targets, shown
from nnterp_mcp.operations import Interventions
from nnterp_mcp.render import elided, in_force, lines, number, plural, probability, quoted, shared_tokens, spread, table

_CATEGORIES = 8
"""Target categories that an answer shows."""

_LAYERS = 12
"""Layers that an answer shows."""

_EXAMPLES = 5
"""Prompts that an answer shows."""


class PromptItem(BaseModel):
    """A prompt with targets of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Prompt
    targets: Targets = Field(default_factory=dict)


class PromptFile(BaseModel):
    """A JSONL or CSV file of prompts in a folder that the server allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(min_length=1)]


PromptSet = PromptFile | tuple[PromptItem, ...]


def as_prompt_set(value: Any) -> PromptSet:
    """Parses a prompt set: strings, objects with their own targets, or a file.

    Raises:
        ValueError: It is none of these, or empty.
    """
    if isinstance(value, dict) and "path" in value:
        return PromptFile.model_validate(value)
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("prompts is empty: give at least one prompt")
    return tuple(_as_item(index, item) for index, item in enumerate(items))


def _as_item(index: int, value: Any) -> PromptItem:
    given = value if isinstance(value, PromptItem | dict) else {"prompt": value}
    try:
        item = PromptItem.model_validate(given)
    except ValidationError as error:
        reason = error.errors()[0]
        raise ValueError(
            f"prompt {index} must be text, chat messages or {{prompt, targets}}, not {shown(value)} "
            f"({reason['msg'].removeprefix('Value error, ')})"
        ) from None
    if not item.prompt:
        raise ValueError(f"prompt {index} is empty: give at least one token of text")
    return item


class RunPromptsParams(ModelParams):
    """Which prompts to run, and what to follow in their answers."""

    prompts: Annotated[
        PromptSet,
        BeforeValidator(as_prompt_set),
        WithJsonSchema(
            {
                "type": ["array", "string", "object"],
                "description": 'Strings that share `targets`, objects {"prompt", "targets"} with their own, or '
                '{"path": FILE}: JSONL of these, or CSV with a prompt column and a column per category.',
            }
        ),
    ]
    targets: Targets = Field(default_factory=dict)
    readout: Annotated[
        Literal["next_token", "logit_lens", "patchscope"],
        Field(description="The model's answer, or what each layer would say by lens or patchscope."),
    ] = "next_token"
    layers: Layers = "all"
    batch_tokens: Annotated[int | None, Field(ge=1, le=1 << 20, description="Padded tokens in a batch.")] = None
    interventions: Interventions = ()


class PromptRow(BaseModel):
    """One prompt: probabilities from 0 to 1 and ranks from 1, by layer and category."""

    model_config = ConfigDict(extra="forbid")

    text: str
    tokens: int
    top: list[tuple[str, float]]
    probabilities: list[list[float]]
    ranks: list[list[int]]


class RunPromptsResult(Result):
    """Every prompt, at every layer read.

    `asked` counts the prompts of the request, `taken` the rows that an equal call had computed before it died;
    `seconds` is the time beside the model, of both.
    """

    model: str
    readout: str
    layers: list[int]
    categories: list[str]
    shared: dict[str, list[str]]
    interventions: list[str]
    rows: list[PromptRow]
    asked: int
    taken: int
    seconds: float


class PromptRows(BaseModel):
    """Some of the prompts' rows, by their number in the request, and the seconds that they took."""

    rows: dict[int, PromptRow]
    seconds: float


class RunPromptsAnswer(Answer):
    """What the prompts say together."""

    model: str
    total: Annotated[int, Field(description="Prompts.")]
    truncated: Annotated[bool, Field(description="Whether rows were left out.")]
    categories: Annotated[TableField, Field(description="By category: probability, wins, ranks.")]
    by_layer: Annotated[TableField | None, Field(description="Mean probability of each category by layer.")] = None
    examples: Annotated[TableField, Field(description="The prompts on which the first category does worst.")]


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
    notes = in_force(result.interventions)
    if result.taken:
        notes.append(f"{plural(result.taken, 'prompt')} taken over from an equal call that did not finish.")
    notes += shared_tokens(result.shared)
    if len(result.categories) > _CATEGORIES:
        others = len(result.categories) - _CATEGORIES
        notes.append(f"Target categories not shown: {others} of {len(result.categories)}; ask for fewer at once.")
    if len(result.layers) > _LAYERS:
        notes.append(f"{plural(len(result.layers) - _LAYERS, 'layer')} not shown: read_run has them.")
    if shown_prompts < len(result.rows):
        hidden = plural(len(result.rows) - shown_prompts, "prompt")
        speed = number(len(result.rows) / max(result.seconds, 1e-9))
        notes.append(f"{hidden} not listed (read_run has them); {speed} prompts a second.")
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


SPEC = ToolSpec(
    name="run_prompts",
    title="Run a prompt set",
    description=(
        "Runs many prompts and follows target strings in their next token: by category the mean probability and its "
        "spread, how often it is the likeliest category and the top token, and the prompts that go worst. Only first "
        "tokens count (with and without a leading space), so strings that begin alike cannot be told apart."
    ),
    params=RunPromptsParams,
    result=RunPromptsResult,
    answer=RunPromptsAnswer,
    digest=digest,
    render=render,
)
