"""Draws a figure as an interactive HTML page: one file, without network access."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from plotly.graph_objects import Bar as Beam
from plotly.graph_objects import Figure as Chart
from plotly.graph_objects import Heatmap as Grid
from plotly.graph_objects import Scatter
from plotly.io._utils import plotly_cdn_url
from plotly.offline import get_plotlyjs

from nnterp_mcp.display import style
from nnterp_mcp.display.figure import Bars, Curve, Curves, Figure, Heatmap, Panel
from nnterp_mcp.display.panels import shades
from nnterp_mcp.formatting import escaped, on_one_line

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; color: {ink}; background: white; margin: 1.5rem; }}
h1 {{ font-size: 1.25rem; margin: 0; }}
p {{ margin: .25rem 0; max-width: 75rem; overflow-wrap: anywhere; }}
main {{ display: flex; flex-wrap: wrap; gap: 1.5rem; }}
footer {{ color: {faint}; font-size: .85rem; }}
</style>
<script>{plotly}</script>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<main>
{panels}
</main>
<footer>{notes}</footer>
</body>
</html>
"""

_CONFIG = {"displaylogo": False, "responsive": False, "plotlyServerURL": "", "showSendToCloud": False}
_NAME = 40
"""Characters of a tick label; hovering shows the whole name."""


def write_html(figure: Figure) -> str:
    """Writes a figure as a page.

    Returns:
        Self-contained HTML whose policy forbids the browser to load anything else.
    """
    return _PAGE.format(
        title=_written(figure.title),
        subtitle=_written(figure.subtitle),
        notes="".join(f"<p>{_written(note)}</p>" for note in figure.notes),
        panels="\n".join(_division(panel, number) for number, panel in enumerate(figure.panels)),
        plotly=get_plotlyjs(),
        ink=style.INK,
        faint=style.FAINT,
    )


_POLICY = "script-src 'unsafe-inline'"


def without_library(page: str) -> str:
    """A page of `write_html` without the plotting library, which is nearly all of its size.

    The page loads the same library from the network, verified by its hash.
    """
    address, digest = plotly_cdn_url(), b64encode(sha256(get_plotlyjs().encode()).digest()).decode()
    origin = "/".join(address.split("/")[:3])
    tag = f'<script charset="utf-8" src="{address}" integrity="sha256-{digest}" crossorigin="anonymous"></script>'
    return page.replace(_POLICY, f"{_POLICY} {origin}", 1).replace(f"<script>{get_plotlyjs()}</script>", tag, 1)


def save(chart: Chart, file: Path, save_html: bool) -> None:
    """Writes a plotly figure.

    Args:
        chart: The figure.
        file: The path; the format follows its suffix, HTML without one. An image needs kaleido.
        save_html: Write an HTML file in addition to an image.
    """
    if file.suffix not in ("", ".html"):
        chart.write_image(file)
        if not save_html:
            return
    chart.write_html(file.with_suffix(".html"))


def _division(panel: Panel, number: int) -> str:
    chart = chart_of(panel)
    written = chart.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"panel-{number}")
    return f'<section aria-label="{_written(panel.title)}">{written}</section>'


def chart_of(panel: Panel) -> Chart:
    """A panel as a plotly figure."""
    if isinstance(panel, Heatmap):
        return _grid(panel)
    return _lines(panel) if isinstance(panel, Curves) else _beams(panel)


def _shown(text: str) -> str:
    """Escapes text for plotly, which interprets some tags."""
    return escape(escaped(on_one_line(text)), quote=False)


def _written(text: str) -> str:
    return escape(escaped(text))


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    short = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names]
    return {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [_shown(name) for name in short]}


def _layout(panel: Panel, **more: Any) -> dict[str, Any]:
    title = {"text": _shown(panel.title), "x": 0, "xref": "paper", "font": {"size": 15}}
    margin = {"l": 90, "r": 30, "t": 50, "b": 60}
    return {"title": title, "template": "plotly_white", "font": {"color": style.INK}, "margin": margin, **more}


def _grid(panel: Heatmap) -> Chart:
    colours, labels = panel.colours, panel.labels
    shown = [[_shown(label) for label in row] for row in labels] if labels else None
    hover = [
        [
            f"{_shown(panel.down)} {_shown(row)}, {_shown(panel.across)} {_shown(column)}"
            + (f"<br>{shown[down][across]}" if shown else "")
            for across, column in enumerate(panel.columns)
        ]
        for down, row in enumerate(panel.rows)
    ]
    trace = Grid(
        z=[list(row) for row in panel.values],
        customdata=hover,
        hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
        colorscale=style.SEQUENTIAL if colours.centre is None else style.DIVERGING,
        zmin=colours.low,
        zmax=colours.high,
        colorbar={"title": {"text": _shown(colours.name), "side": "right"}, "thickness": 14},
        xgap=1 if shown else 0,
        ygap=1 if shown else 0,
    )
    longest = max((len(label) for row in labels or () for label in row), default=0)
    cell = max(48, min(130, 8 * longest + 16)) if labels else 22
    chart = Chart([trace, *([_labels(panel, shown)] if shown else [])])
    chart.update_layout(
        _layout(
            panel,
            width=max(420, 250 + cell * len(panel.columns)),
            height=max(320, 150 + 22 * len(panel.rows)),
            plot_bgcolor=style.BLANK,
            xaxis={
                "title": {"text": _shown(panel.across)},
                "range": [-0.5, len(panel.columns) - 0.5],
                "showgrid": False,
                **_ticks(panel.columns),
            },
            yaxis={
                "title": {"text": _shown(panel.down)},
                "range": [len(panel.rows) - 0.5, -0.5],
                "showgrid": False,
                "automargin": True,
                **_ticks(panel.rows),
            },
        )
    )
    return chart


def _labels(panel: Heatmap, texts: list[list[str]]) -> Scatter:
    """The text of the cells, black or white by contrast."""
    colours = shades(panel.colours).to_rgba(np.array(panel.values, dtype=float))
    cells = [(down, across) for down, row in enumerate(texts) for across in range(len(row))]
    return Scatter(
        x=[across for _, across in cells],
        y=[down for down, _ in cells],
        text=[texts[down][across] for down, across in cells],
        mode="text",
        textfont={"color": [style.ink_on(*map(float, colours[cell][:3])) for cell in cells]},
        hoverinfo="skip",
        showlegend=False,
    )


def _lines(panel: Curves) -> Chart:
    colours, dashes = style.colours_of(panel.curves), style.dashes_of(panel.curves)
    chart = Chart()
    for number, curve in enumerate(panel.curves):
        if curve.low is not None and curve.high is not None:
            chart.add_trace(_band(curve, colours[curve.name], str(number)))
        control = curve.role == "control"
        chart.add_trace(
            Scatter(
                x=list(curve.x),
                y=list(curve.y),
                name=_shown(curve.name),
                legendgroup=str(number),
                mode="lines" if control and len(curve.x) > 1 else "lines+markers",
                line={"color": colours[curve.name], "dash": dashes[curve.name][1] if control else "solid"},
                hovertemplate="%{y:.4g}",
            )
        )
    chart.update_layout(_layout(panel, width=760, height=460, hovermode="x unified"))
    chart.update_xaxes(title_text=_shown(panel.across), **_names(panel))
    chart.update_yaxes(
        title_text=_shown(panel.up), rangemode="tozero" if panel.span and panel.span[0] == 0 else "normal"
    )
    return chart


def _names(panel: Curves) -> dict[str, Any]:
    if not panel.names:
        return {}
    places = sorted({x for curve in panel.curves for x in curve.x})
    step = max(1, len(places) // 15)
    ticks = [x for number, x in enumerate(places) if x in panel.names or number % step == 0]
    texts = [_shown(panel.names.get(x, f"{x:g}")) for x in ticks]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": texts}


def _band(curve: Curve, colour: str, group: str) -> Scatter:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return Scatter(
        x=[*curve.x, *reversed(curve.x)],
        y=[*(curve.high or ()), *reversed(curve.low or ())],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
    )


def _beams(panel: Bars) -> Chart:
    places = list(range(len(panel.bars)))
    names = [_shown(bar.name) for bar in panel.bars]
    chart = Chart(
        Beam(
            x=[bar.value for bar in panel.bars],
            y=places,
            orientation="h",
            text=None,
            customdata=names,
            hovertemplate="%{customdata}: %{x:.4g}<extra></extra>",
            marker_color=[style.FAINT if bar.role == "control" else style.PALETTE[bar.value < 0] for bar in panel.bars],
            error_x=_intervals(panel),
            showlegend=False,
        )
    )
    if panel.mark:
        chart.add_trace(
            Scatter(
                x=[bar.mark for bar in panel.bars],
                y=places,
                mode="markers",
                name=_shown(panel.mark),
                marker={"symbol": "diamond-open", "color": style.INK, "size": 9},
            )
        )
    axis = {"autorange": "reversed", "automargin": True, **_ticks([bar.name for bar in panel.bars])}
    chart.update_layout(_layout(panel, width=760, height=max(280, 150 + 24 * len(names)), yaxis=axis))
    chart.update_xaxes(title_text=_shown(panel.along))
    return chart


def _intervals(panel: Bars) -> dict[str, Any] | None:
    if all(bar.low is None or bar.high is None for bar in panel.bars):
        return None
    above = [bar.high - bar.value if bar.high is not None else 0 for bar in panel.bars]
    below = [bar.value - bar.low if bar.low is not None else 0 for bar in panel.bars]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": style.INK}
