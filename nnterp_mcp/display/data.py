"""A figure as data for pages: its panels with their kinds, every curve with its place in the palette."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nnterp_mcp.display import style
from nnterp_mcp.display.figure import Bars, Curves, Figure, Heatmap, Panel, ordered
from nnterp_mcp.formatting import escaped_data, finite, rounded

_DIGITS = 5
"""Significant digits of a number on a page; it is to be looked at."""


def figure_data(figure: Figure) -> dict[str, Any]:
    """Plain data for JSON; numbers that are not finite become null."""
    return escaped_data(
        finite(rounded(asdict(figure) | {"panels": [_panel(panel) for panel in figure.panels]}, _DIGITS))
    )


def _panel(panel: Panel) -> dict[str, Any]:
    data = {"kind": type(panel).__name__.lower(), **asdict(panel)}
    if isinstance(panel, Heatmap):
        data["rows"], data["columns"] = list(map(ordered, panel.rows)), list(map(ordered, panel.columns))
        data["labels"] = None if panel.labels is None else [list(map(ordered, row)) for row in panel.labels]
    if isinstance(panel, Bars):
        data["bars"] = [asdict(bar) | {"name": ordered(bar.name)} for bar in panel.bars]
    if isinstance(panel, Curves):
        series, dashes = style.series_of(panel.curves), style.dashes_of(panel.curves)
        data["names"] = list(panel.names.items())
        data["curves"] = [
            asdict(curve) | {"series": series[curve.name], "dash": dashes.get(curve.name)} for curve in panel.curves
        ]
    return data
