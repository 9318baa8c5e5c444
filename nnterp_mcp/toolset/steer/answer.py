"""The answer to a sweep: cells of layer and factor, each effect next to its control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, pstdev, stdev
from typing import Literal

from nnterp_mcp.formatting import elided, number, probability, quoted, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_categories, on_means
from nnterp_mcp.table import Cell, Column, Kind, cell_text, tabulate
from nnterp_mcp.toolset.steer.result import SteerAnswer, SteeredRun, SteerResult

_BUDGET = 660
"""Tokens that the rows of an answer may take, about."""

_CATEGORIES = 4
"""Target categories that an answer shows."""

_TEXT = 160
"""Characters of a generated text that an answer shows."""

_KL = "KL(steered || baseline)"

_CLEARLY = 2.0
"""Standard deviations by which an effect must lie beyond its control's mean to exceed it."""


@dataclass(frozen=True)
class Group:
    """Runs at one layer with one factor: of one prompt where texts are shown, of all prompts otherwise."""

    prompt: int | None
    layer: int | None
    factor: float
    runs: Sequence[SteeredRun]
    matched: int = 0

    @cached_property
    def own(self) -> list[SteeredRun]:
        """The runs with the vector itself."""
        return [run for run in self.runs if run.control is None]

    @property
    def kl(self) -> float:
        """Mean divergence over the prompts."""
        return fmean(run.kl for run in self.own)

    def target(self, index: int) -> float:
        """Mean probability of a category."""
        return fmean(run.targets[index][0] for run in self.own)

    def over(self, control: Control, measure: OfRun) -> Spread | None:
        """The mean of a number under the controls of one kind, and its standard deviation over them."""
        names = sorted({run.control for run in self.runs if run.control is not None})
        names = [name for name in names if (name < self.matched) == (control == "matched")]
        means = [fmean(measure(run) for run in self.runs if run.control == name) for name in names]
        return (fmean(means), stdev(means)) if len(means) > 1 else None


Control = Literal["matched", "random"]
"""Rows of matched features, or random directions."""

OfRun = Callable[[SteeredRun], float]

Spread = tuple[float, float]
"""A mean and a standard deviation."""


def _kl(run: SteeredRun) -> float:
    return run.kl


def _p(index: int) -> OfRun:
    return lambda run: run.targets[index][0]


def digest(result: SteerResult) -> SteerAnswer:
    """The baseline and the cells of the sweep; where they are too many, the ends, the strongest and some between."""
    groups = _groups(result)
    cells = [group for group in groups if group.layer is not None]
    focus, chosen = _focus(cells, groups, result)
    columns, room = _fitting(result, len(groups))
    marks = [groups.index(group) for group in groups if group.layer is None][: room // 2]
    marks += [groups.index(focus)] if focus else []
    shown = [groups[index] for index in spread(range(len(groups)), marks, room)]
    hidden = len(groups) - len(shown)
    return SteerAnswer(
        finding=_finding(focus, chosen, groups, result),
        notes=_notes(result, focus, hidden),
        model=result.model,
        total=len(cells),
        truncated=hidden > 0 or len(result.categories) > _CATEGORIES,
        table=tabulate(columns, shown),
        by_layer=_every_layer(cells, focus, chosen) if hidden else {},
    )


def _groups(result: SteerResult) -> list[Group]:
    each = len(result.prompts) > 1 and any(run.text is not None for run in result.runs)
    found: dict[tuple[int | None, int | None, float], list[SteeredRun]] = {}
    for run in result.runs:
        found.setdefault((run.prompt if each else None, run.layer, run.factor), []).append(run)
    return [Group(*key, runs, len(result.matched or [])) for key, runs in found.items()]


@dataclass(frozen=True)
class _Criterion:
    """The number by which the cell of the finding is chosen.

    Attributes:
        name: Its name.
        of: Its value in a group.
        measure: Its value in a run.
    """

    name: str
    of: Callable[[Group], float]
    measure: OfRun

    def exceeds(self, group: Group) -> bool:
        """True if it lies further from the mean of each kind of control than the spread over them allows."""
        spreads = [found for kind in _KINDS if (found := group.over(kind, self.measure)) is not None]
        return bool(spreads) and all(abs(self.of(group) - mean) > _CLEARLY * sd for mean, sd in spreads)


_KINDS: tuple[Control, ...] = ("matched", "random")


def _criteria(result: SteerResult) -> list[_Criterion]:
    """The probability of the first category, where there is one, and the divergence."""
    targets = [
        _Criterion(f"p of {quoted(elided(name))}", lambda group: group.target(0), _p(0))
        for name in list(result.categories)[:1]
    ]
    return [*targets, _Criterion("KL", lambda group: group.kl, _kl)]


def _focus(cells: Sequence[Group], groups: Sequence[Group], result: SteerResult) -> tuple[Group | None, _Criterion]:
    """The cell that the finding names, and the criterion that chose it.

    It is the cell with the largest change among those that exceed their control by the first criterion that any cell
    exceeds; among all where there is none. Cells of factor zero are left aside, for they are the baseline.
    """
    pushed = [group for group in cells if group.factor]
    criteria = _criteria(result)
    chosen = next((one for one in criteria if any(map(one.exceeds, pushed))), criteria[0])
    exceeding = [group for group in pushed if chosen.exceeds(group)]

    def change(group: Group) -> float:
        return abs(chosen.of(group) - chosen.of(_baseline(group, groups)))

    return max(exceeding or pushed, key=change, default=None), chosen


def _baseline(group: Group, groups: Sequence[Group]) -> Group:
    return next(other for other in groups if other.layer is None and other.prompt == group.prompt)


def _columns_of(result: SteerResult, tokens: int) -> list[Column[Group]]:
    texts = any(run.text is not None for run in result.runs)
    several = len(result.prompts) > 1
    columns: list[Column[Group]] = [
        Column("prompt", lambda group: group.prompt, shown=several and texts, cost=4),
        Column("layer", lambda group: "baseline" if group.layer is None else group.layer, cost=4),
        Column("factor", lambda group: group.factor, cost=4),
        Column("push", _push, cost=6),
        Column(_KL, lambda group: group.kl, cost=6),
        Column("KL sd", lambda group: pstdev(run.kl for run in group.own), shown=several and not texts, cost=6),
        Column("top changed", lambda group: _changed(group, result), shown=several and not texts, cost=6),
        Column("control KL", lambda group: _measured(group.over("random", _kl)), shown=bool(result.controls), cost=11),
        Column("matched KL", lambda group: _measured(group.over("matched", _kl)), shown=_matches(result), cost=11),
    ]
    for index, name in enumerate(list(result.categories)[:_CATEGORIES]):
        columns += _target_columns(index, f"{elided(name)} p", result)
    last: list[Column[Group]] = [
        Column("text", lambda group: elided(group.own[0].text or "", _TEXT), Kind.TEXT, texts, 36),
        Column("perplexity unedited", lambda group: group.own[0].perplexity, shown=texts, cost=6),
        Column("text of a control", _control_text, Kind.TEXT, texts and bool(result.controls), 36),
        Column("top tokens", lambda group: _top(group, tokens), Kind.TOKENS, not texts and not several, 14 * tokens),
    ]
    return [column for column in columns + last if column.shown]


def _matches(result: SteerResult) -> bool:
    """True if there are matched features enough for a spread over them."""
    return len(result.matched or []) > 1


def _target_columns(index: int, name: str, result: SteerResult) -> list[Column[Group]]:
    return [
        Column(name, lambda group: _two_digits(group.target(index)), cost=8),
        Column(
            "control p",
            lambda group: _measured(group.over("random", _p(index))),
            shown=bool(result.controls),
            cost=15,
        ),
        Column(
            "matched p",
            lambda group: _measured(group.over("matched", _p(index))),
            shown=_matches(result),
            cost=15,
        ),
    ]


def _fitting(result: SteerResult, rows: int) -> tuple[list[Column[Group]], int]:
    """The columns and the rows that the budget allows; fewer top tokens before fewer rows."""
    choices = [_columns_of(result, tokens) for tokens in range(len(result.runs[0].top), 0, -1)]
    budget = _BUDGET - PER_LAYER * len({run.layer for run in result.runs})
    rooms = [max(3, budget // sum(column.cost for column in columns)) for columns in choices]
    fitting = (index for index, room in enumerate(rooms) if room >= rows)
    chosen = next(fitting, len(choices) - 1)
    return choices[chosen], rooms[chosen]


def _push(group: Group) -> Cell:
    pushes = [run.push for run in group.own if run.push is not None]
    return fmean(pushes) if pushes else None


def _changed(group: Group, result: SteerResult) -> Cell:
    before = {run.prompt: run.top[0][0] for run in result.runs if run.layer is None}
    return fmean(run.top[0][0] != before[run.prompt] for run in group.own)


def _measured(values: Spread | None) -> Cell:
    """A mean with its standard deviation, of which one digit means something, and no more of the mean."""
    if values is None:
        return None
    mean, deviation = values
    digits = -math.floor(math.log10(deviation)) if deviation > 0 else 6
    digits += f"{deviation:e}".startswith("1")
    return [probability(round(mean, digits)), "±", probability(round(deviation, digits))]


def _two_digits(value: float) -> Cell:
    return probability(float(f"{value:.2g}"))


def _control_text(group: Group) -> Cell:
    texts = [run.text for run in group.runs if run.control == 0 and run.text is not None]
    return elided(texts[0], _TEXT) if texts else None


def _top(group: Group, count: int) -> Cell:
    return [[token, _two_digits(p)] for token, p in group.own[0].top[:count]]


def _finding(focus: Group | None, chosen: _Criterion, groups: Sequence[Group], result: SteerResult) -> str:
    cells = [group for group in groups if group.layer is not None]
    if focus is None:
        every = "the one cell is" if len(cells) == 1 else f"all {len(cells)} cells are"
        return f"{result.model} was not steered: a factor of 0 adds nothing, and {every} the baseline."
    where = f"layer {focus.layer} with factor {number(focus.factor)}"
    prompt = "" if focus.prompt is None else f" after prompt {focus.prompt}"
    mean = "" if len(focus.own) == 1 else f" in the mean of {len(focus.own)} prompts"
    moved = f"KL(steered || baseline) of the next token is {number(focus.kl)} nats{mean}{_control(focus, _kl)}"
    targets = "".join(f"; {part}" for part in _targets_moved(focus, groups, result))
    return f"{_opening(cells, chosen, result)} {where}{prompt}, {result.vector}: {moved}{targets}."


def _opening(cells: Sequence[Group], chosen: _Criterion, result: SteerResult) -> str:
    """The criterion by which the cell was chosen, and how many cells exceed their control."""
    matched = f"{len(result.matched or [])} matched features and " if _matches(result) else ""
    control = f"{matched}{result.controls} random directions of equal norm (by {_CLEARLY:g} sd)"
    counts = {one.name: sum(map(one.exceeds, cells)) for one in _criteria(result)}
    if len(cells) == 1:
        verdict = "changes more" if counts[chosen.name] else "changes no more"
        return f"{chosen.name} {verdict} than with {control}: at" if result.controls else "At"
    if not result.controls:
        return f"Of {len(cells)} cells, {chosen.name} changes most at"
    (first, count), *others = counts.items()
    more = "".join(f", {name} in {number or 'none'}" for name, number in others)
    among = "of these, " if counts[chosen.name] else ""
    exceeding = f"{first} changes more than with {control} in {count or 'none'} of {len(cells)} cells{more}"
    return f"{exceeding}; {among}{chosen.name} changes most at"


def _control(focus: Group, measure: OfRun) -> str:
    found = {"control": focus.over("random", measure), "matched": focus.over("matched", measure)}
    parts = [f"{name} {cell_text(_measured(values))}" for name, values in found.items() if values is not None]
    return f" ({', '.join(parts)})" if parts else ""


def _targets_moved(focus: Group, groups: Sequence[Group], result: SteerResult) -> Iterator[str]:
    for index, name in enumerate(list(result.categories)[:_CATEGORIES]):
        before, after = _baseline(focus, groups).target(index), focus.target(index)
        first, last = (cell_text(_two_digits(value)) for value in (before, after))
        odds = ""
        if first == last and 0 < before < 1 and 0 < after < 1:
            odds = f", in log-odds from {number(_log_odds(before))} to {number(_log_odds(after))}"
        control = _control(focus, _p(index))
        yield f"the probability of {quoted(elided(name))} goes from {first} to {last}{odds}{control}"


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def _every_layer(cells: Sequence[Group], focus: Group | None, chosen: _Criterion) -> dict[str, list[float]]:
    """The number that chose the cell of the finding, after every layer of the sweep with that cell's factor."""
    if focus is None:
        return {}
    row = [group for group in cells if (group.factor, group.prompt) == (focus.factor, focus.prompt)]
    layers = [group.layer for group in row if group.layer is not None]
    name = _KL if chosen.name == "KL" else chosen.name
    return by_layer(layers, {f"{name}, factor {number(focus.factor)}": [chosen.of(group) for group in row]})


def _notes(result: SteerResult, focus: Group | None, hidden: int) -> list[str]:
    notes: list[str] = []
    if focus is not None and not result.controls:
        notes.append("No control was run: control=true shows what 5 random directions of equal norm do.")
    if _matches(result):
        notes.append("matched: the rows of features that are about as often and as strongly active, at equal norm.")
    elif result.matched is not None:
        notes.append("No matched features were compared: the dictionary is gone, or too few features are active.")
    if focus is not None and (push := _push(focus)) is not None and isinstance(push, float) and push > 1:
        notes.append("push > 1: more was added than was there; such texts often fall apart.")
    notes += on_means(False, result.dominant and result.dominant.warning)
    notes += in_force(result.in_force)
    notes += on_categories(result.categories, result.shared, _CATEGORIES, "runs")
    return notes + left_out(hidden, "row", "runs")
