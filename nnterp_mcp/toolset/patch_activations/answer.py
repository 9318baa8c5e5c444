"""How a patching grid is cut down to an answer: its strongest cells, and where they are by layer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from nnterp_mcp.contract import Measured
from nnterp_mcp.formatting import LayerSpan, brief, elided, layer_groups, number, plural, quoted
from nnterp_mcp.render import in_force, left_out, shared_tokens
from nnterp_mcp.table import Cell, Column, Kind, Table, tabulate
from nnterp_mcp.toolset.patch_activations.result import (
    EVERYWHERE,
    GridColumn,
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


def _spoken(column: GridColumn) -> str:
    """A column in words: its position or label, with its tokens."""
    if column.label == EVERYWHERE:
        return "all positions"
    return f"{_position(column)} ({Kind.EITHER.text(_tokens(column))})"


def _position(column: GridColumn) -> str:
    return f"position {column.label}" if column.label.isdigit() else quoted(elided(column.label))


def _tokens(column: GridColumn) -> Cell:
    """The clean prompt's tokens, and the corrupted one's where these differ."""
    clean = elided(column.clean or "", _TOKENS)
    if column.corrupted is None or column.corrupted == column.clean:
        return clean
    return [clean, elided(column.corrupted, _TOKENS)]


def _strongest(cells: Sequence[PatchedCell], result: PatchActivationsResult) -> Table:
    heads = result.by_head
    columns: list[Column[PatchedCell]] = [
        Column("site", lambda cell: cell.site, shown=len({cell.site for cell in result.cells}) > 1),
        Column("head", lambda cell: _where(cell, result), shown=heads),
        Column("layer", lambda cell: cell.layer, shown=not heads),
        Column("position", lambda cell: position_of(result.columns[cell.column].label), shown=not heads),
        Column("tokens", lambda cell: _tokens(result.columns[cell.column]), Kind.EITHER, not heads),
        Column(result.metric, lambda cell: cell.metric.mean, Kind.BRIEF),
        Column("recovery", lambda cell: _told(cell).mean, Kind.BRIEF, effect_name(result) == "recovery"),
        Column("95 %", _told, Kind.INTERVAL, result.clean.low is not None),
    ]
    return tabulate(columns, cells)


def _profile(result: PatchActivationsResult) -> Table:
    """For each few layers and each site, the strongest cell: what it does, and its column."""
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    layers = sorted({cell.layer for cell in result.cells})
    columns: list[Column[LayerSpan]] = [
        Column("layers", lambda group: group[0]),
        *(Column(site, lambda group, site=site: _peak(result, site, group[1])) for site in sites),
    ]
    return tabulate(columns, layer_groups(layers, max(3, min(10, _PROFILE // (3 + 4 * len(sites))))))


def _peak(result: PatchActivationsResult, site: str, layers: Sequence[int]) -> Cell:
    cells = [cell for cell in result.cells if cell.site == site and cell.layer in layers]
    if not cells:
        return None
    cell = max(cells, key=lambda cell: abs(cell.effect))
    label = elided(result.columns[cell.column].label, 12)
    return [brief(_told(cell).mean), f"H{label}" if result.by_head else f"@{label}"]


def _finding(order: Sequence[PatchedCell], result: PatchActivationsResult) -> str:
    opening = f"{result.model}: {_baselines(result)}."
    if not order:
        return f"{opening} No cell changes anything: the two runs have the same states there."
    first = order[0]
    means = "" if result.prompts == 1 else f" in the mean of {result.prompts} prompts"
    told = f"{number(brief(first.metric.mean))}{means}"
    if first.recovery is not None:
        told = f"a recovery of {number(brief(first.recovery.mean))}{means}"
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
    clean = f"clean runs have a {metric_name(result)} of {number(brief(result.clean.mean))}"
    if result.corrupted is None:
        return clean
    return f"{clean}, those with {result.corruption} {number(brief(result.corrupted.mean))}"


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
    spread = f" ± {number(brief(deviation))}" if len(controls) > 1 else ""
    base = _unpatched(result).mean if found.recovery is None else float(result.direction == "noising")
    clear = abs(together.mean - mean) > _CLEARLY * deviation and abs(together.mean - base) > abs(mean - base)
    beside = "further than" if clear else "no further than"
    return (
        f" The {plural(found.cells, 'strongest cell')} together give {number(brief(together.mean))}, {beside} as many "
        f"random cells of the same sites and layers: {number(brief(mean))}{spread} over "
        f"{plural(len(controls), 'draw')}."
    )


def _notes(order: Sequence[PatchedCell], hidden: int, result: PatchActivationsResult) -> list[str]:
    notes = [_reading(result)]
    gap = None if result.corrupted is None else abs(result.clean.mean - result.corrupted.mean)
    if gap is not None and gap < _SMALL:
        notes.append(f"Clean and corrupted differ by {number(brief(gap))} only: recovery divides by next to nothing.")
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
    return notes + left_out(hidden, "cell", "cells")


def _reading(result: PatchActivationsResult) -> str:
    peak = "profile: the strongest cell of these layers, with its " + ("head." if result.by_head else "column.")
    if effect_name(result) == "recovery":
        return f"recovery: 0 as corrupted, 1 as clean. {peak}"
    return f"Numbers are the metric of the patched run. {peak}"
