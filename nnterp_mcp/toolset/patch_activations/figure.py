"""A patching grid as a picture: a heatmap for each site, and the control."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Colours, Figure, Heatmap, Panel, visible
from nnterp_mcp.display.layers import target_names
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.patch_activations.result import GridColumn, PatchActivationsResult, PatchedCell

_SITES = 6
"""Sites that are drawn."""

_COLUMNS = 100
"""Columns that are drawn, the last ones."""


def figure(result: PatchActivationsResult, arrays: Arrays) -> Figure:
    """Layers upwards, positions or heads across; white is a cell that changes nothing."""
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    panels: list[Panel] = [_grid(site, result) for site in sites[:_SITES]]
    if result.patched_set is not None:
        panels.append(_control(result))
    windows = f" · windows of {result.window} layers" if result.window > 1 else ""
    paths = f" · {result.paths}" if result.paths else ""
    heads = f" · heads patched at {result.at}" if result.by_head and result.at else ""
    return Figure(
        title=f"Activation patching ({result.direction}) · {result.model}",
        subtitle=f"{_prompts(result)}{heads}{paths}{windows}",
        panels=panels,
        columns=3 if len(panels) > 4 or (len(panels) == 3 and len(result.columns) < 12) else 2,
        notes=[
            f"{_metric(result)}: clean {number(result.clean.mean)}{_corrupted(result)}. {_reading(result)}",
            *([f"{_SITES} of {len(sites)} sites are drawn."] if len(sites) > _SITES else []),
            *_last_columns(len(result.columns), result.by_head),
            *in_force(result.in_force),
        ],
    )


def _prompts(result: PatchActivationsResult) -> str:
    """The first pair of prompts, and what was done where only one is there."""
    several = f"mean of {result.prompts} prompts, the first: " if result.prompts > 1 else ""
    names = " → ".join(quoted(elided(text, 160)) for text in result.texts)
    return f"{several}{names}" if len(result.texts) > 1 else f"{several}{names} with {result.corruption}"


def _metric(result: PatchActivationsResult) -> str:
    """The metric with the tokens that it compares."""
    names = target_names(result.categories, result.prompts)
    if result.metric == "logit_difference":
        return f"Logit difference {' − '.join(names[:2])}"
    return f"Log-probability of {names[0]}" if result.metric == "log_probability" else "KL(clean ‖ patched)"


def _corrupted(result: PatchActivationsResult) -> str:
    return "" if result.corrupted is None else f", corrupted {number(result.corrupted.mean)}"


def _last_columns(count: int, by_head: bool) -> list[str]:
    """The note on the columns that are left out."""
    noun = "heads" if by_head else "positions"
    return [f"The last {_COLUMNS} of {count} {noun} are drawn."] if count > _COLUMNS else []


def _reading(result: PatchActivationsResult) -> str:
    if result.recovers:
        return "Recovery: 0 as corrupted, 1 as clean; white is the run that is patched."
    return "Colours: by how much a patch moves the metric."


def _value(cell: PatchedCell) -> float:
    return cell.effect if cell.recovery is None else cell.recovery.mean


def _colours(result: PatchActivationsResult) -> Colours:
    """A scale with two sides, unless the patched run cannot diverge less than it does."""
    values = [_value(cell) for cell in result.cells]
    if result.recovers:
        return Colours.around("recovery", values, 1.0 if result.direction == "noising" else 0.0)
    if result.metric == "kl" and min(values, default=0.0) >= 0:
        return Colours("KL(clean ‖ patched) (nats)", 0.0, max(values, default=0.0) or 1.0)
    unit = "logits" if result.metric == "logit_difference" else "nats"
    return Colours.around(f"change of the {result.metric.replace('_', ' ')} ({unit})", values)


def _grid(site: str, result: PatchActivationsResult) -> Heatmap:
    layers = sorted({cell.layer for cell in result.cells}, reverse=True)
    here = [cell for cell in result.cells if cell.site == site]
    strongest = max(here, key=lambda cell: -1.0 if cell.by_construction else abs(cell.effect))
    cells = {(cell.layer, cell.column): _value(cell) for cell in here}
    columns = range(len(result.columns))[-_COLUMNS:]
    return Heatmap(
        title=site,
        across="head" if result.by_head else "token",
        down="layer",
        columns=[_column(result.columns[at], result.by_head) for at in columns],
        rows=[str(layer) for layer in layers],
        values=[[cells.get((layer, column)) for column in columns] for layer in layers],
        colours=_colours(result),
        focus=(layers.index(strongest.layer), max(0, strongest.column - columns.start)),
    )


def _column(column: GridColumn, head: bool) -> str:
    """A head's number; or a token with that of the other run, where it differs, and its position."""
    if head:
        return column.label
    clean = visible(elided(column.clean or "", 12))
    if column.corrupted is not None and column.corrupted != column.clean:
        clean += f"/{visible(elided(column.corrupted, 12))}"
    return f"{clean} {elided(column.label, 12)}"


def _control(result: PatchActivationsResult) -> Bars:
    """The set of cells, and each random set."""
    found = result.patched_set
    assert found is not None
    recovers = found.recovery is not None
    together = found.recovery or found.metric
    controls = found.control_recoveries if recovers else found.controls
    bars = [
        Bar(
            f"{plural(len(found.cells), 'named cell' if found.named else 'strongest cell')}",
            together.mean,
            together.low,
            together.high,
        )
    ]
    bars += [Bar(f"random set {at + 1}", value, role="control") for at, value in enumerate(controls)]
    return Bars("patched together", "recovery" if recovers else _metric(result), bars, signed=True)
