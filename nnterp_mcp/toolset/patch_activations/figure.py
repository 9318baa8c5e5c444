"""A patching grid as a picture: a heatmap for each site, and the control."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Colours, Figure, Heatmap, Panel, visible
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.toolset.patch_activations.result import GridColumn, PatchActivationsResult, PatchedCell, metric_name

_SITES = 6
"""Sites that are drawn."""


def figure(result: PatchActivationsResult, arrays: Arrays) -> Figure:
    """Layers upwards, positions or heads across; white is a cell that changes nothing."""
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    panels: list[Panel] = [_grid(site, result) for site in sites[:_SITES]]
    if result.patched_set is not None:
        panels.append(_control(result))
    windows = f" · windows of {result.window} layers" if result.window > 1 else ""
    paths = f" · {result.paths}" if result.paths else ""
    return Figure(
        title=f"Activation patching ({result.direction}) · {result.model}",
        subtitle=f"{_prompts(result)}{paths}{windows}",
        panels=panels,
        columns=3 if len(panels) > 4 or (len(panels) == 3 and len(result.columns) < 12) else 2,
        notes=[
            f"Metric: {metric_name(result)}. {_reading(result)}",
            *([f"{_SITES} of {len(sites)} sites are drawn."] if len(sites) > _SITES else []),
        ],
    )


def _prompts(result: PatchActivationsResult) -> str:
    """The first pair of prompts, and what was done where only one is there."""
    several = f"the first of {result.prompts} prompts: " if result.prompts > 1 else ""
    names = " → ".join(quoted(elided(text, 160)) for text in result.texts)
    return f"{several}{names}" if len(result.texts) > 1 else f"{several}{names} with {result.corruption}"


def _reading(result: PatchActivationsResult) -> str:
    if result.recovers:
        return "Recovery: 0 as corrupted, 1 as clean; white is the run that is patched."
    return "Colours: by how much a patch moves the metric."


def _value(cell: PatchedCell) -> float:
    return cell.effect if cell.recovery is None else cell.recovery.mean


def _grid(site: str, result: PatchActivationsResult) -> Heatmap:
    layers = sorted({cell.layer for cell in result.cells}, reverse=True)
    cells = {(cell.layer, cell.column): _value(cell) for cell in result.cells if cell.site == site}
    recovers = result.recovers
    centre = 1.0 if recovers and result.direction == "noising" else 0.0
    name = "recovery" if recovers else "change of the metric (nats)"
    return Heatmap(
        title=site,
        across="head" if result.by_head else "token",
        down="layer",
        columns=[_column(column, result.by_head) for column in result.columns],
        rows=[str(layer) for layer in layers],
        values=[[cells.get((layer, column)) for column in range(len(result.columns))] for layer in layers],
        colours=Colours.around(name, [_value(cell) for cell in result.cells], centre),
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
    bars += [Bar(f"random set {number + 1}", value, role="control") for number, value in enumerate(controls)]
    return Bars("patched together", "recovery" if recovers else metric_name(result), bars)
