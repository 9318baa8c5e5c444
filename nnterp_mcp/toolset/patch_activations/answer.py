"""How a patching grid is cut down to an answer: its largest effects and every layer; or the measures of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnterp_mcp.formatting import brief, elided, number, plural, quoted, ranges
from nnterp_mcp.render import in_force, left_out, shared_tokens
from nnterp_mcp.table import Cell, Column, Kind, Table, tabulate
from nnterp_mcp.toolset.patch_activations.result import (
    EVERYWHERE,
    GridColumn,
    PatchActivationsAnswer,
    PatchActivationsResult,
    PatchedCell,
    effect_name,
    metric_column,
    metric_name,
    name_cell,
    position_of,
)
from nnterp_mcp.toolset.patch_activations.sets import (
    MEMBERS,
    along_paths,
    circuit_sentence,
    measured,
    measures_table,
    members_table,
    over_prompts,
    replacement,
    set_sentence,
)

_ROWS = 6
"""Cells in the table; fewer where rows are long."""

_NUMBERS = 80
"""Numbers of the profile, about."""

_TOKENS = 20
"""Characters of a span's tokens."""

_POSITIONS = 2
"""Positions that a sentence names."""

_ALIKE = 0.05
"""The share of the largest effect by which others may fall short of it and still count as equally large."""

_HALF = 0.5
"""The recovery at which a position counts as carrying the answer."""

_SMALL = 0.1
"""A gap between clean and corrupted, in nats, below which recovery divides by next to nothing."""

_SATURATED = -0.05
"""A log-probability, in nats, above which it hardly moves."""

_RESIDUAL = ("layers_input", "layers_output")


def digest(result: PatchActivationsResult) -> PatchActivationsAnswer:
    """The baselines, then the largest effects and one number for every layer, or a set's measures."""
    order = [cell for cell in result.cells if cell.effect and not cell.by_construction]
    order.sort(key=lambda cell: -abs(cell.effect))
    shown = order[: _ROWS - 3 * (result.clean.low is not None or len({cell.site for cell in result.cells}) > 1)]
    hidden = len(result.cells) - len(shown)
    named = result.patched_set if result.patched_set and result.patched_set.named else None
    return PatchActivationsAnswer(
        finding=f"{result.model}: {_baselines(result)}. {_finding(order, result)}",
        notes=_notes(hidden, result),
        model=result.model,
        clean=result.clean.mean,
        corrupted=None if result.corrupted is None else result.corrupted.mean,
        total=len(result.cells),
        truncated=hidden > 0,
        table=_largest(shown, result) if named is None else measures_table(named, result),
        profile=_profile(result) if named is None else members_table(result),
    )


def _baselines(result: PatchActivationsResult) -> str:
    clean = f"clean runs have a {metric_name(result)} of {number(brief(result.clean.mean))}"
    if result.corrupted is None:
        return clean
    return f"{clean}, those with {result.corruption} {number(brief(result.corrupted.mean))}"


def _finding(order: Sequence[PatchedCell], result: PatchActivationsResult) -> str:
    found = result.patched_set
    if found is not None and found.named:
        return set_sentence(found, result) + circuit_sentence(result)
    if not order and not any(cell.effect for cell in result.cells):
        return "No cell changes anything: the two runs have the same states there."
    carried = [] if result.by_head or not result.recovers else _carried(result)
    left = [cell for cell in order if not (carried and cell.site in _RESIDUAL)]
    sentences = [*carried, *([_largest_sentence(left, result)] if left else [])]
    if not sentences:
        sentences = ["Every effect follows by construction: the patch makes the run the other run."]
    return " ".join(sentences) + ("" if found is None else f" {set_sentence(found, result)}")


def _carried(result: PatchActivationsResult) -> list[str]:
    """For each site in the residual stream, the layers at which each position carries the answer."""
    sites = [site for site in dict.fromkeys(cell.site for cell in result.cells) if site in _RESIDUAL]
    free = {cell.site for cell in result.cells if cell.effect and not cell.by_construction}
    return [_carried_at(site, result) for site in sites if site in free]


def _carried_at(site: str, result: PatchActivationsResult) -> str:
    noising = result.direction == "noising"
    cells = [cell for cell in result.cells if cell.site == site]
    layers = sorted({cell.layer for cell in cells})
    parts: list[str] = []
    for at, column in enumerate(result.columns):
        own = [cell for cell in cells if cell.column == at and cell.recovery is not None]
        strong = [
            cell
            for cell in own
            if cell.recovery and (cell.recovery.mean <= _HALF if noising else cell.recovery.mean >= _HALF)
        ]
        if any(not cell.by_construction for cell in strong):
            parts.append(f"{_spoken(column)} {_span([cell.layer for cell in strong], layers, noising)}")
    put = f"{replacement(result)} at {site}{_about(result)}"
    bar = "leaving at most half the recovery" if noising else "with a recovery of at least half"
    if not parts:
        best = max(cells, key=lambda cell: abs(cell.effect) * (not cell.by_construction))
        return (
            f"{put}: no single position carries the answer ({bar}); the largest effect is "
            f"{number(brief(measured(best).mean))}, {_where(best, result)}."
        )
    if len(parts) > _POSITIONS:
        parts[_POSITIONS:] = [f"{len(parts) - _POSITIONS} more positions"]
    carried = f"{'needed' if noising else 'carried'} by {'; '.join(parts)}"
    return f"{put}{along_paths(result)}: {carried} ({bar}{over_prompts(result)})."


def _span(strong: Sequence[int], layers: Sequence[int], noising: bool) -> str:
    """Layers as a part of those that were patched: to layer 19, from layer 23."""
    if list(strong) == list(layers):
        return f"in {'all ' if len(layers) > 1 else ''}{plural(len(layers), 'layer')} patched"
    if len(strong) > 1 and list(strong) == list(layers[: len(strong)]):
        return f"to layer {strong[-1]} ({'above' if noising else 'below'} half at {layers[len(strong)]})"
    if len(strong) > 1 and list(strong) == list(layers[-len(strong) :]):
        return f"from layer {strong[0]}"
    return f"in {'layer' if len(strong) == 1 else 'layers'} {ranges(list(strong))}"


def _largest_sentence(order: Sequence[PatchedCell], result: PatchActivationsResult) -> str:
    """The cell with the largest effect, and those that equal it."""
    first = order[0]
    value = f"{effect_name(result)} {number(brief(measured(first).mean))}"
    cells = [cell for cell in result.cells if not cell.by_construction]
    of = f"The largest effect of {plural(len(cells), 'cell')}" if len(cells) > 1 else "The effect"
    put = f"{replacement(result).lower()} at {first.site} of {_where(first, result)}"
    said = f"{of}: {put}{along_paths(result)}, {value}{over_prompts(result)}"
    alike = [cell for cell in order[1:] if abs(cell.effect) >= (1 - _ALIKE) * abs(first.effect)]
    if alike:
        said += f"; {plural(len(alike), 'other')} within {_ALIKE:.0%} of it, so that it is no peak"
    return f"{said}."


def _about(result: PatchActivationsResult) -> str:
    return f" of {result.window} layers about each" if result.window > 1 else ""


def _where(cell: PatchedCell, result: PatchActivationsResult) -> str:
    column = result.columns[cell.column]
    if result.by_head:
        return f"L{cell.layer}H{column.label}"
    about = f"{result.window} layers about " if result.window > 1 else ""
    return f"{about}layer {cell.layer} at {_spoken(column)}"


def _spoken(column: GridColumn) -> str:
    """A column in words: its position or label, with its tokens."""
    if column.label == EVERYWHERE:
        return "all positions together"
    position = f"position {column.label}" if column.label.isdigit() else quoted(elided(column.label))
    return f"{position} ({Kind.EITHER.text(_tokens(column))})"


def _tokens(column: GridColumn) -> Cell:
    """The clean prompt's tokens, and the corrupted one's where these differ."""
    clean = elided(column.clean or "", _TOKENS)
    if column.corrupted is None or column.corrupted == column.clean:
        return clean
    return [clean, elided(column.corrupted, _TOKENS)]


def _largest(cells: Sequence[PatchedCell], result: PatchActivationsResult) -> Table:
    heads, sites = result.by_head, {cell.site for cell in result.cells}
    long = len(sites) > 1 and result.clean.low is not None
    columns: list[Column[PatchedCell]] = [
        Column("site", lambda cell: cell.site, shown=len(sites) > 1),
        Column("head", lambda cell: _where(cell, result), shown=heads),
        Column("layer", lambda cell: cell.layer, shown=not heads),
        Column("position", lambda cell: position_of(result.columns[cell.column].label), shown=not heads),
        Column("tokens", lambda cell: _tokens(result.columns[cell.column]), Kind.EITHER, not (heads or long)),
        Column(metric_column(result), lambda cell: cell.metric.mean, Kind.BRIEF),
        Column("recovery", lambda cell: measured(cell).mean, Kind.BRIEF, result.recovers),
        Column("95 %", measured, Kind.INTERVAL, result.clean.low is not None),
    ]
    return tabulate(columns, cells)


def _profile(result: PatchActivationsResult) -> Table:
    """Every layer: a number for each column where there is room, else each site's or all cells' largest effect."""
    layers = sorted({cell.layer for cell in result.cells})
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    moved = {(cell.site, cell.column) for cell in result.cells if cell.effect}
    pairs = [pair for site in sites for at in range(len(result.columns)) if (pair := (site, at)) in moved]
    of = {(cell.site, cell.column, cell.layer): cell for cell in result.cells}
    columns: list[Column[int]] = [Column("layer", lambda layer: layer)]
    if len(layers) * len(pairs) <= _NUMBERS:
        columns += [_numbers(_head(site, at, sites, result), site, at, of) for site, at in pairs]
    elif 2 * len(layers) * len(sites) <= _NUMBERS:
        columns += [_peaks(site, [site], result) for site in sites]
    else:
        columns.append(_peaks("any site", sites, result))
    return tabulate(columns, layers)


def _numbers(name: str, site: str, at: int, of: Mapping[tuple[str, int, int], PatchedCell]) -> Column[int]:
    def value(layer: int) -> float | None:
        cell = of.get((site, at, layer))
        return None if cell is None else measured(cell).mean

    return Column(name, value, Kind.BRIEF)


def _peaks(name: str, sites: Sequence[str], result: PatchActivationsResult) -> Column[int]:
    return Column(name, lambda layer: _peak(result, layer, sites))


def _head(site: str, at: int, sites: Sequence[str], result: PatchActivationsResult) -> str:
    label = elided(result.columns[at].label, 12)
    column = f"H{label}" if result.by_head else f"@{label}"
    return column if len(sites) == 1 else f"{site} {column}"


def _peak(result: PatchActivationsResult, layer: int, sites: Sequence[str]) -> Cell:
    cells = [cell for cell in result.cells if cell.site in sites and cell.layer == layer]
    if not cells:
        return None
    cell = max(cells, key=lambda cell: abs(cell.effect))
    if len(sites) > 1:
        return brief(measured(cell).mean)
    label = elided(result.columns[cell.column].label, 12)
    return [brief(measured(cell).mean), f"H{label}" if result.by_head else f"@{label}"]


def _notes(hidden: int, result: PatchActivationsResult) -> list[str]:
    notes = _reading(result)
    gap = None if result.corrupted is None else abs(result.clean.mean - result.corrupted.mean)
    if gap is not None and gap < _SMALL:
        notes.append(f"Clean and corrupted differ by {number(brief(gap))} only: recovery divides by next to nothing.")
    if result.metric == "log_probability" and result.clean.mean > _SATURATED:
        notes.append("The log-probability is saturated (probability near 1): a second category gives log-odds instead.")
    if result.metric != "kl" and result.corrupted is not None and result.clean.mean < result.corrupted.mean:
        notes.append("The clean runs favour the answer less than the corrupted ones: check prompts and targets.")
    if result.clean.low is not None:
        over = f"{result.draws} draws of noise" if result.prompts == 1 else f"{result.prompts} prompts"
        notes.append(f"Means over {over}; 95 % intervals by resampling them.")
    if result.window > 1:
        notes.append(f"A cell stands for {result.window} adjacent layers about its own, fewer at either end.")
    if result.patched_set is not None and result.patched_set.dictionary is not None:
        notes.append("Each prompt's first token is left out.")
    elif [column.label for column in result.columns] == [EVERYWHERE]:
        notes.append('Ablated at all positions together: positions="0:" takes them one by one.')
    trivial = [name_cell(cell.site, cell.layer, result.columns[cell.column].label, result.by_head)
               for cell in result.cells if cell.by_construction]  # fmt: skip
    if trivial:
        named = ", ".join(trivial[:2]) + (f" and {len(trivial) - 2} more" if len(trivial) > 2 else "")
        notes.append(f"Not counted as findings, since they follow by construction: {named}.")
    notes += in_force(result.in_force)
    if result.cells and result.patched_set is None:
        notes.append("No control ran: control=true patches the strongest cells together, and 20 random sets.")
    notes += shared_tokens(result.shared)
    notes += left_out(len(result.members) - MEMBERS, "member", "members")
    return notes + left_out(hidden, "cell", "cells")


def _reading(result: PatchActivationsResult) -> list[str]:
    scale = (
        "Recovery is 0 as in corrupted runs, 1 as in clean." if result.recovers else "Numbers are the patched metric."
    )
    if not result.cells:
        return [scale]
    return [f"{scale} Table: by size of effect. Profile: every layer, the largest effect where a column is not named."]
