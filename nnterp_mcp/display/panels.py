"""The kinds of panels in matplotlib: the room that each takes, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Protocol

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from nnterp_mcp.display import style
from nnterp_mcp.display.figure import MARKS, Bar, Bars, Colours, Curve, Curves, Graph, Heatmap, Panel, Passages
from nnterp_mcp.display.routes import LEVEL, WIDTH, points_of
from nnterp_mcp.display.text import FAMILIES, fitted, font, literal, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SIZE = 8.5
"""Points of most text; at 100 dots an inch that is 12 pixels."""

_LINE = 0.17
"""Inches between two lines of text."""

_SMALLEST = 5.5
"""Points below which nothing is written into a cell."""

_GAP = 0.08
_TITLE = 0.34
_AXIS = 0.26
_BAR = 0.16
_LONGEST = 1.9
"""Inches of a tick label, at most."""

_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Room:
    """The size of a panel in inches: the area inside its axes, the margins around it, its largest height, and whether
    its height shrinks with its width."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    tallest: float = 0.0
    square: bool = False


class Drawer(Protocol):
    """A panel that knows its room, and draws itself into axes of a size."""

    def room(self) -> Room:
        """The preferred size."""
        ...

    def draw(self, axes: Axes, size: tuple[float, float]) -> None:
        """Draws it into axes of this width and height, in inches."""
        ...


def drawer(panel: Panel) -> Drawer:
    """The drawer for a kind of panel."""
    if isinstance(panel, Heatmap):
        return _Grid(panel)
    if isinstance(panel, Curves):
        return _Lines(panel)
    if isinstance(panel, Graph):
        return _Network(panel)
    return _Beams(panel) if isinstance(panel, Bars) else _Words(panel)


def _widest(names: Sequence[str], most: float = _LONGEST) -> float:
    return min(most, max((width(name, SIZE) for name in names), default=0.0))


def _every(count: int, inches: float) -> int:
    """The step between tick labels so that none touch."""
    return max(1, -(-count * 10 // max(1, int(inches / _LINE * 11))))


def _named(axes: Axes, inches: float, title: str, across: str, up: str) -> None:
    shown = _text(title, max(inches, 2.6), SIZE + 1)
    axes.set_title(shown, loc="left", fontproperties=font(SIZE + 1), color=style.INK)
    axes.set_xlabel(literal(across), fontproperties=font(SIZE), color=style.INK)
    axes.set_ylabel(literal(up), fontproperties=font(SIZE), color=style.INK)
    axes.tick_params(length=2, labelsize=SIZE, labelfontfamily=list(FAMILIES), colors=style.INK)


def _explain(axes: Axes, lines: Sequence[Line2D], names: Sequence[str], corner: tuple[float, float]) -> None:
    """Adds a legend with explicit names, since matplotlib omits some by default."""
    axes.legend(lines, names, loc="upper left", bbox_to_anchor=corner, frameon=False, prop=font(SIZE), handlelength=1.6)


def _text(content: str, room: float, size: float) -> str:
    return literal(fitted(content, room, size))


class _Grid:
    def __init__(self, panel: Heatmap) -> None:
        self._panel = panel
        labels = [label for row in panel.labels or () for label in row]
        self._cell = min(1.35, max(0.42, _widest(labels) + 0.12)) if labels else 0.2
        self._turned = _widest(panel.columns) > max(self._cell, 0.2) * (1 if labels else 2)

    def room(self) -> Room:
        panel = self._panel
        names = _widest(panel.columns, 1.2) if self._turned else _LINE
        cell = 0.2 if panel.labels or len(panel.rows) > 24 else 0.24
        column = self._cell if panel.labels else max(cell, 0.2)
        return Room(
            width=max(1.6, column * len(panel.columns)),
            height=max(1.2, cell * len(panel.rows)),
            left=_widest(panel.rows) + _AXIS + _GAP,
            right=_BAR + 0.75,
            top=_TITLE,
            bottom=names + _AXIS + _GAP,
            square=panel.square,
        )

    def draw(self, axes: Axes, size: tuple[float, float]) -> None:
        panel = self._panel
        shade = shades(panel.colours)
        values = np.array([[np.nan if v is None else v for v in row] for row in panel.values], dtype=float)
        image = shade.to_rgba(np.ma.masked_invalid(values))
        axes.imshow(image, aspect="equal" if panel.square else "auto", interpolation="nearest")
        axes.set_anchor("NW")
        _named(axes, size[0], panel.title, panel.across, panel.down)
        self._name_columns(axes, size[0])
        step = _every(len(panel.rows), size[1])
        rows = range(0, len(panel.rows), step)
        axes.set_yticks(list(rows), [_text(panel.rows[row], _LONGEST, SIZE) for row in rows])
        if panel.labels:
            self._label(axes, image, size)
        self._explain(axes, shade, size)

    def _name_columns(self, axes: Axes, inches: float) -> None:
        names = self._panel.columns
        step = _every(len(names), inches) if self._turned else max(1, int(_widest(names) * len(names) / inches + 0.99))
        columns = [*range(0, len(names) - step, step), len(names) - 1] if names else []
        room = 1.2 if self._turned else inches
        axes.set_xticks(columns, [_text(names[at], room, SIZE) for at in columns], rotation=90 if self._turned else 0)

    def _label(self, axes: Axes, image: np.ndarray, size: tuple[float, float]) -> None:
        labels = self._panel.labels or []
        points = min(SIZE, size[1] / len(labels) * 72 * 0.66)
        room = size[0] / max(1, len(self._panel.columns)) - 0.05
        if points < _SMALLEST:
            return
        for row, texts in enumerate(labels):
            for column, label in enumerate(texts):
                axes.text(
                    column,
                    row,
                    _text(label, room, points),
                    ha="center",
                    va="center_baseline",
                    fontproperties=font(points),
                    color=style.ink_on(*map(float, image[row, column, :3])),
                )

    def _explain(self, axes: Axes, shade: ScalarMappable, size: tuple[float, float]) -> None:
        beside = axes.inset_axes((1 + _GAP / size[0], 0, _BAR / size[0], 1))
        values = [v for row in self._panel.values for v in row if v is not None]
        colours = self._panel.colours
        beyond = max(values, default=0) > colours.high, min(values, default=0) < colours.low
        extend = "both" if all(beyond) else "max" if beyond[0] else "min" if beyond[1] else "neither"
        assert axes.figure is not None
        bar = axes.figure.colorbar(shade, cax=beside, extend=extend)
        bar.set_label(literal(fitted(colours.name, max(1.2, size[1]), SIZE)), fontproperties=font(SIZE))
        bar.locator = MaxNLocator(5)
        bar.ax.tick_params(length=2, labelsize=SIZE, labelfontfamily=list(FAMILIES))
        bar.update_ticks()


def shades(colours: Colours) -> ScalarMappable:
    """The colours of a heatmap's values."""
    stops = style.SEQUENTIAL if colours.centre is None else style.DIVERGING
    low, high = colours.low, colours.high
    shade = LinearSegmentedColormap.from_list("nnterp", stops).with_extremes(bad=style.BLANK)
    return ScalarMappable(Normalize(low, high if high > low else low + 1, clip=True), shade)


class _Lines:
    def __init__(self, panel: Curves) -> None:
        self._panel = panel

    def room(self) -> Room:
        names = _widest([curve.name for curve in self._panel.curves], 2.4)
        return Room(5.0, 3.3, 0.85, names + 0.55, _TITLE, bottom=_LINE + _AXIS + _GAP, tallest=4.8)

    def draw(self, axes: Axes, size: tuple[float, float]) -> None:
        panel = self._panel
        _named(axes, size[0], panel.title, panel.across, panel.up)
        axes.grid(color=style.GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        colours = style.colours_of(panel.curves)
        dashes = style.dashes_of(panel.curves)
        drawn: list[Line2D] = []
        for curve, marker in zip(panel.curves, cycle(_MARKERS), strict=False):
            drawn.append(self._draw(axes, curve, colours[curve.name], dashes.get(curve.name, "-"), marker))
        if panel.ranks:
            _rank_axis(axes, max((value for curve in panel.curves for value in curve.y), default=10))
        elif panel.span is not None:
            axes.set_ylim(*_including(axes.get_ylim(), panel.span))
        if not panel.ranks:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        self._name_ticks(axes)
        names = [_text(curve.name, 2.4, SIZE) for curve in panel.curves]
        _explain(axes, drawn, names, (1.0, 1.02))

    def _draw(self, axes: Axes, curve: Curve, colour: str, line: str, marker: str) -> Line2D:
        control = curve.role == "control"
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
        (drawn,) = axes.plot(
            curve.x,
            curve.y,
            color=colour,
            linestyle=line,
            linewidth=1.4,
            marker="" if control and len(curve.x) > 1 else marker,
            markersize=3.5,
        )
        return drawn

    def _name_ticks(self, axes: Axes) -> None:
        """Labels as many of the points as have room; there are no ticks in between."""
        names = self._panel.names
        points = sorted({x for curve in self._panel.curves for x in curve.x})
        if len(points) == 1:
            axes.set_xlim(points[0] - 1, points[0] + 1)
        apart = 0.09 * (points[-1] - points[0])
        kept: list[float] = []
        for x in points:
            if not kept or x - kept[-1] >= apart:
                kept.append(x)
        axes.set_xticks(kept, [literal(names.get(x, f"{x:g}")) for x in kept])


def _rank_axis(axes: Axes, most: float) -> None:
    """Rank 1 on top, down to the next power of ten below all."""
    powers = [10**power for power in range(max(1, math.ceil(math.log10(max(most, 10)))) + 1)]
    axes.set_yscale("log")
    axes.set_ylim(powers[-1], 0.8)
    axes.set_yticks(powers, [f"{power:,}" for power in powers])
    axes.minorticks_off()


def _including(limits: tuple[float, float], span: tuple[float, float]) -> tuple[float, float]:
    low, high = min(limits[0], span[0]), max(limits[1], span[1])
    margin = 0.02 * (high - low)
    return low - margin if low == span[0] else low, high + margin


class _Beams:
    def __init__(self, panel: Bars) -> None:
        self._panel = panel

    def room(self) -> Room:
        names = _widest([bar.name for bar in self._panel.bars], 2.6)
        bottom = _LINE + _AXIS + _GAP + (_LINE + 0.1 if self._panel.mark else 0)
        return Room(4.2, max(1.0, 0.23 * len(self._panel.bars)), names + 0.2, 0.3, _TITLE, bottom)

    def draw(self, axes: Axes, size: tuple[float, float]) -> None:
        panel, places = self._panel, range(len(self._panel.bars))
        _named(axes, size[0], panel.title, panel.along, "")
        axes.grid(color=style.GRID, linewidth=0.6, axis="x")
        axes.set_axisbelow(True)
        for spine in ("top", "right", "left"):
            axes.spines[spine].set_visible(False)
        colours = [_bar_colour(bar, panel.signed) for bar in panel.bars]
        axes.barh(list(places), [bar.value for bar in panel.bars], height=0.72, color=colours)
        for place, bar in enumerate(panel.bars):
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=style.INK, linewidth=1.1)
        marked = [(bar.mark, place) for place, bar in enumerate(panel.bars) if bar.mark is not None]
        if panel.mark and marked:
            drawn = axes.plot(
                *zip(*marked, strict=True),
                linestyle="",
                marker="D",
                markersize=5,
                markerfacecolor="white",
                markeredgecolor=style.INK,
            )
            _explain(axes, drawn, [_text(panel.mark, size[0], SIZE)], (0, -0.45 / size[1]))
        axes.axvline(0, color=style.INK, linewidth=0.8)
        step = _every(len(places), size[1])
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(list(places)[::step], [_text(bar.name, 2.6, SIZE) for bar in panel.bars[::step]], rotation=0)
        axes.set_ylim(len(places) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(6))


def _bar_colour(bar: Bar, signed: bool) -> str:
    if bar.role == "control":
        return style.FAINT
    if signed:
        return style.LOWERS if bar.value < 0 else style.RAISES
    return style.PALETTE[0]


class _Words:
    _WIDTH = 5.6
    _LINES = 3

    def __init__(self, panel: Passages) -> None:
        self._panel = panel
        self._names = _widest([name for name, _ in panel.rows], 2.2)
        self._texts = [
            wrapped(text.replace("\n", MARKS["\n"]), self._WIDTH - self._names - 0.2, SIZE, self._LINES) or [""]
            for _, text in panel.rows
        ]

    def room(self) -> Room:
        lines = sum(map(len, self._texts))
        return Room(self._WIDTH, _LINE * lines + 0.06 * len(self._texts), 0.05, 0.1, _TITLE, 0.1)

    def draw(self, axes: Axes, size: tuple[float, float]) -> None:
        axes.set_axis_off()
        shown = _text(self._panel.title, size[0], SIZE + 1)
        axes.set_title(shown, loc="left", fontproperties=font(SIZE + 1), color=style.INK)
        axes.set_xlim(0, size[0])
        axes.set_ylim(size[1], 0)
        top = 0.0
        for (name, _), lines in zip(self._panel.rows, self._texts, strict=True):
            label = _text(name, self._names + 0.05, SIZE)
            axes.text(0, top, label, va="top", fontproperties=font(SIZE), color=style.FAINT)
            for line in lines:
                axes.text(self._names + 0.2, top, literal(line), va="top", fontproperties=font(SIZE), color=style.INK)
                top += _LINE
            top += 0.06


class _Network:
    def __init__(self, panel: Graph) -> None:
        self._panel = panel
        self._levels = 1 + max((node.level for node in panel.nodes), default=0)

    def room(self) -> Room:
        return Room(WIDTH, max(2.4, LEVEL * self._levels), 0.1, 0.1, _TITLE, 0.1)

    def draw(self, axes: Axes, size: tuple[float, float]) -> None:
        panel = self._panel
        _named(axes, size[0], f"{panel.title} (blue lowers, red raises: {panel.strength})", "", "")
        axes.set_axis_off()
        axes.set_xlim(0, size[0])
        axes.set_ylim(-0.5 * LEVEL, (self._levels - 0.5) * LEVEL)
        at = {node.name: (node.x * size[0], node.level * LEVEL) for node in panel.nodes}
        most = max((abs(edge.value) for edge in panel.edges), default=1.0) or 1.0
        for edge in reversed(panel.edges):
            points = points_of(at[edge.sender], at[edge.receiver], edge.bend)
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=style.LOWERS if edge.value < 0 else style.RAISES,
                linewidth=0.5 + 3 * (abs(edge.value) / most) ** 0.5,
                alpha=0.6,
                solid_capstyle="round",
            )
        points = min(SIZE, size[1] / self._levels * 72 * 0.6)
        boxed = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": style.GRID}
        for node in panel.nodes:
            axes.text(
                *at[node.name],
                _text(node.name, 1.2, points),
                ha="center",
                va="center",
                fontproperties=font(max(_SMALLEST, points)),
                color=style.INK,
                bbox=boxed,
            )
