"""How a patching grid is cut down to an answer: its strongest cells, and where they are by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean, stdev

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force, left_out, lines, shared_tokens, table
from nnterp_mcp.toolset.patch_activations.result import (
    EVERYWHERE,
    Column,
    Measured,
    PatchActivationsAnswer,
    PatchActivationsResult,
    PatchedCell,
    position_of,
)

_ROWS = 8
"""Strongest cells that an answer shows."""

_PROFILE = 70
"""Cells of the profile, over all its sites, about."""

_TOKENS = 20
"""Characters of a span's tokens."""

_CLEARLY = 2.0
"""Standard deviations by which an effect must pass its control to count as more."""

_SMALL = 0.1
"""A gap between clean and corrupted, in nats, below which recovery divides by next to nothing."""


def digest(result: PatchActivationsResult) -> PatchActivationsAnswer:
    """The baselines, the strongest cells and the strongest of each few layers."""
    order = sorted(result.cells, key=lambda cell: -abs(cell.effect))
    order = [cell for cell in order if cell.effect]
    hidden = len(result.cells) - len(order[:_ROWS])
    return PatchActivationsAnswer(
        finding=_finding(order, result),
        notes=_notes(order, hidden, result),
        model=result.model,
        clean=result.clean.mean,
        corrupted=None if result.corrupted is None else result.corrupted.mean,
        total=len(result.cells),
        truncated=hidden > 0,
        table=_strongest(order[:_ROWS], result),
        profile=_profile(result),
    )


def _unpatched(result: PatchActivationsResult) -> Measured:
    """The metric of the run into which states were put."""
    denoising = result.direction == "denoising" and result.corrupted is not None
    return result.corrupted if denoising and result.corrupted is not None else result.clean


def _told(cell: PatchedCell) -> Measured:
    """What an answer says of a cell: recovery where it is defined, else the metric."""
    return cell.metric if cell.recovery is None else cell.recovery


def effect_name(result: PatchActivationsResult) -> str:
    """What an answer says of a cell: recovery where it is defined, else the metric."""
    return "recovery" if result.corrupted is not None and result.cells and result.cells[0].recovery else "metric"


def _where(cell: PatchedCell, result: PatchActivationsResult) -> str:
    column = result.columns[cell.column]
    if result.by_head:
        return f"L{cell.layer}H{column.label}"
    about = f"{result.window} layers about " if result.window > 1 else ""
    return f"{about}layer {cell.layer} at {_spoken(column)}"


def _spoken(column: Column) -> str:
    """A column in words: its position or label, with its tokens."""
    if column.label == EVERYWHERE:
        return "all positions"
    tokens = _quote("tokens", _tokens(column))
    return f"{_position(column)} ({tokens})"


def _position(column: Column) -> str:
    return f"position {column.label}" if column.label.isdigit() else quoted(elided(column.label))


def _tokens(column: Column) -> Cell:
    """The clean prompt's tokens, and the corrupted one's where these differ."""
    clean = elided(column.clean or "", _TOKENS)
    if column.corrupted is None or column.corrupted == column.clean:
        return clean
    return [clean, elided(column.corrupted, _TOKENS)]


def _strongest(cells: Sequence[PatchedCell], result: PatchActivationsResult) -> Table:
    several = len({cell.site for cell in result.cells}) > 1
    interval = result.clean.low is not None
    recovers = effect_name(result) == "recovery"
    columns = [
        *(["site"] if several else []),
        *(["head"] if result.by_head else ["layer", "position", "tokens"]),
        result.metric,
        *(["recovery"] if recovers else []),
        *(["95 %"] if interval else []),
    ]
    rows: list[list[Cell]] = []
    for cell in cells:
        column = result.columns[cell.column]
        where: list[Cell] = [cell.layer, position_of(column.label), _tokens(column)]
        told = _told(cell)
        rows.append(
            [
                *([cell.site] if several else []),
                *([_where(cell, result)] if result.by_head else where),
                _brief(cell.metric.mean),
                *([_brief(told.mean)] if recovers else []),
                *([[_brief(told.low or 0.0), "to", _brief(told.high or 0.0)]] if interval else []),
            ]
        )
    return Table(columns=columns, rows=rows)


def _profile(result: PatchActivationsResult) -> Table:
    """For each few layers and each site, the strongest cell: what it does, and its column."""
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    layers = sorted({cell.layer for cell in result.cells})
    count = max(3, min(10, _PROFILE // (3 + 4 * len(sites))))
    groups = [[*group] for _, group in groupby(layers, key=lambda layer: layers.index(layer) * count // len(layers))]
    rows: list[list[Cell]] = []
    for group in groups if len(layers) > count else [[layer] for layer in layers]:
        label = str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}"
        rows.append([label, *(_peak(result, site, group) for site in sites)])
    return Table(columns=["layers", *sites], rows=rows)


def _peak(result: PatchActivationsResult, site: str, layers: Sequence[int]) -> Cell:
    cells = [cell for cell in result.cells if cell.site == site and cell.layer in layers]
    if not cells:
        return None
    cell = max(cells, key=lambda cell: abs(cell.effect))
    label = elided(result.columns[cell.column].label, 12)
    return [_brief(_told(cell).mean), f"H{label}" if result.by_head else f"@{label}"]


def _finding(order: Sequence[PatchedCell], result: PatchActivationsResult) -> str:
    opening = f"{result.model}: {_baselines(result)}."
    if not order:
        return f"{opening} No cell changes anything: the two runs have the same states there."
    first = order[0]
    means = "" if result.prompts == 1 else f" in the mean of {result.prompts} prompts"
    told = f"{number(_brief(first.metric.mean))}{means}"
    if first.recovery is not None:
        told = f"a recovery of {number(_brief(first.recovery.mean))}{means}"
    paths = "" if result.receivers is None else f", along direct paths to {result.receivers} alone,"
    put, verb = _deed(result, first)
    return f"{opening} {put} at {first.site} of {_where(first, result)}{paths} {verb} {told}.{_control(result)}"


def _deed(result: PatchActivationsResult, cell: PatchedCell) -> tuple[str, str]:
    """What was done, and what it does, as subject and verb."""
    if result.corrupted is None:
        return f"{result.corruption} put in", "make it"
    put = "Clean states put in" if result.direction == "denoising" else "Corrupted states put in"
    return put, "make it" if cell.recovery is None else "bring" if result.direction == "denoising" else "leave"


def _baselines(result: PatchActivationsResult) -> str:
    clean = f"clean runs have a {metric_name(result)} of {number(_brief(result.clean.mean))}"
    if result.corrupted is None:
        return clean
    return f"{clean}, those with {result.corruption} {number(_brief(result.corrupted.mean))}"


def metric_name(result: PatchActivationsResult) -> str:
    """The metric, with its categories."""
    names = [quoted(elided(name)) for name in result.categories][:2]
    if result.metric == "logit_difference":
        return f"logit difference ({' − '.join(names)})"
    return f"log-probability of {names[0]}" if result.metric == "log_probability" else "KL from the clean run"


def _control(result: PatchActivationsResult) -> str:
    found = result.together
    if found is None:
        return ""
    together = found.metric if found.recovery is None else found.recovery
    controls = found.controls if found.recovery is None else found.control_recoveries
    mean, deviation = fmean(controls), stdev(controls) if len(controls) > 1 else 0.0
    spread = f" ± {number(_brief(deviation))}" if len(controls) > 1 else ""
    base = _unpatched(result).mean if found.recovery is None else float(result.direction == "noising")
    clear = abs(together.mean - mean) > _CLEARLY * deviation and abs(together.mean - base) > abs(mean - base)
    beside = "further than" if clear else "no further than"
    return (
        f" The {plural(found.cells, 'strongest cell')} together give {number(_brief(together.mean))}, {beside} as many "
        f"random cells of the same sites and layers: {number(_brief(mean))}{spread} over "
        f"{plural(len(controls), 'draw')}."
    )


def _notes(order: Sequence[PatchedCell], hidden: int, result: PatchActivationsResult) -> list[str]:
    notes = [_reading(result)]
    gap = None if result.corrupted is None else abs(result.clean.mean - result.corrupted.mean)
    if gap is not None and gap < _SMALL:
        notes.append(f"Clean and corrupted differ by {number(_brief(gap))} only: recovery divides by next to nothing.")
    if result.metric != "kl" and result.corrupted is not None and result.clean.mean < result.corrupted.mean:
        notes.append("The clean runs favour the answer less than the corrupted ones: check prompts and targets.")
    if result.clean.low is not None:
        over = f"{result.draws} draws of noise" if result.prompts == 1 else f"{result.prompts} prompts"
        notes.append(f"Means over {over}; 95 % intervals by resampling them.")
    if result.window > 1:
        notes.append(f"A cell stands for {result.window} adjacent layers about its own, fewer at either end.")
    if [column.label for column in result.columns] == [EVERYWHERE]:
        notes.append('Ablated at all positions together: positions="0:" takes them one by one.')
    notes += in_force(result.in_force)
    if order and result.together is None:
        notes.append("The strongest of many cells stands out by chance too: control=true compares it with random ones.")
    notes += shared_tokens(result.shared)
    if hidden:
        notes.append(left_out(plural(hidden, "cell"), "cells"))
    return notes


def _reading(result: PatchActivationsResult) -> str:
    peak = "profile: the strongest cell of these layers, with its " + ("head." if result.by_head else "column.")
    if effect_name(result) == "recovery":
        return f"recovery: 0 as corrupted, 1 as clean. {peak}"
    return f"Numbers are the metric of the patched run. {peak}"


def _brief(value: float) -> float:
    """Two digits after the point, or two that mean something."""
    return round(value, 2) if abs(value) >= 0.1 else float(f"{value:.2g}")


def render(answer: PatchActivationsAnswer) -> str:
    """As text: the strongest cells, then the profile; tokens in quotes so that their spaces show."""
    content = answer.table
    rows = [[_quote(column, value) for column, value in zip(content.columns, row, strict=True)] for row in content.rows]
    return lines(answer, table(Table(columns=content.columns, rows=rows)), "profile:", table(answer.profile))


def _quote(column: str, value: Cell) -> Cell:
    if column != "tokens":
        return value
    return " / ".join(quoted(str(token)) for token in (value if isinstance(value, list) else [value]))
