"""Draws a figure as a PNG, small enough for clients and legible for models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet
from PIL import Image

from nnterp_mcp.display import style
from nnterp_mcp.display.figure import Figure
from nnterp_mcp.display.panels import SIZE, Drawer, Room, drawer
from nnterp_mcp.display.text import fitted, font, literal, wrapped

LONGEST = 1568
"""Pixels of a side, at most: clients scale down what is larger."""

LARGEST = 200_000
"""Bytes, at most."""

_DPI = 100
_MOST = LONGEST / _DPI
_NARROWEST = 6.4
_EDGE = 0.15
_BETWEEN = 0.2
_HEADING = 12.0
_LINE = 0.19
_NOTES = 3

_ONE_AT_A_TIME = Lock()
"""Matplotlib's caches of fonts are shared by all threads."""


def draw_png(figure: Figure) -> bytes:
    """Draws a figure.

    Returns:
        A PNG of at most `LONGEST` pixels a side and `LARGEST` bytes.
    """
    with _ONE_AT_A_TIME:
        plan = _Plan(figure)
        sheet = Sheet(figsize=plan.size, dpi=_DPI, facecolor="white")
        canvas = FigureCanvasAgg(sheet)
        plan.write(sheet)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return _encoded(picture)


@dataclass(frozen=True)
class _Placed:
    drawer: Drawer
    left: float
    top: float
    width: float
    height: float


class _Plan:
    """The layout: the title on top, the panels in rows and columns, the notes at the bottom.

    Attributes:
        size: The sheet's width and height, in inches.
    """

    def __init__(self, figure: Figure) -> None:
        self._figure = figure
        self._drawers = [drawer(panel) for panel in figure.panels]
        rooms = [one.room() for one in self._drawers]
        across = max(1, min(figure.columns, len(rooms)))
        rows = [rooms[start : start + across] for start in range(0, len(rooms), across)]
        columns = [rooms[start::across] for start in range(across)]
        around = [max(r.left + r.right for r in column) for column in columns]
        wide = [max(r.width for r in column) for column in columns]
        margins = sum(around) + _BETWEEN * (across - 1) + 2 * _EDGE
        self._shrunk = min(1.0, (_MOST - margins) / sum(wide))
        width = min(_MOST, max(_NARROWEST, margins + self._shrunk * sum(wide)))
        self._subtitle = wrapped(figure.subtitle, width - 2 * _EDGE, SIZE + 1, 3)
        self._notes = [line for note in figure.notes for line in wrapped(note, width - 2 * _EDGE, SIZE - 0.5, 2)][
            : 2 * _NOTES
        ]
        self._head = _EDGE + 0.27 + _LINE * len(self._subtitle) + 0.1
        foot = _LINE * len(self._notes) + _EDGE
        above = [max(r.top + r.bottom for r in row) for row in rows]
        high = [max(self._height(r) for r in row) for row in rows]
        margins = sum(above) + _BETWEEN * (len(rows) - 1) + self._head + foot
        self._lowered = min(1.0, (_MOST - margins) / sum(high))
        self.size = (width, min(_MOST, margins + self._lowered * sum(high)))
        self._placed = list(self._place(rows, columns))

    def _height(self, room: Room) -> float:
        return room.height * (self._shrunk if room.square else 1.0)

    def _place(self, rows: Sequence[Sequence[Room]], columns: Sequence[Sequence[Room]]) -> list[_Placed]:
        placed: list[_Placed] = []
        top = self._head
        for row in rows:
            left = _EDGE
            high = max(map(self._height, row))
            for room, column in zip(row, columns, strict=False):
                margin = max(one.left for one in column)
                width = room.width * self._shrunk
                height = max(self._height(room), min(high, room.tallest)) * self._lowered
                one = self._drawers[len(placed)]
                placed.append(_Placed(one, left + margin, top + room.top, width, height))
                left += max(r.left + r.right for r in column) + max(r.width for r in column) * self._shrunk + _BETWEEN
            top += max(r.top + r.bottom for r in row) + high * self._lowered + _BETWEEN
        return placed

    def write(self, sheet: Sheet) -> None:
        """Draws everything onto a sheet."""
        width, height = self.size
        room = width - 2 * _EDGE

        def line(text: str, top: float, size: float, colour: str = style.INK, bold: bool = False) -> None:
            shown = literal(fitted(text, room, size, bold))
            sheet.text(_EDGE / width, 1 - top / height, shown, va="top", color=colour, fontproperties=font(size, bold))

        line(self._figure.title, _EDGE, _HEADING, bold=True)
        for number, part in enumerate(self._subtitle):
            line(part, _EDGE + 0.27 + _LINE * number, SIZE + 1)
        for number, part in enumerate(self._notes):
            line(part, height - _EDGE + 0.05 - _LINE * (len(self._notes) - number), SIZE - 0.5, style.FAINT)
        for one in self._placed:
            place = (
                one.left / width,
                1 - (one.top + one.height) / height,
                one.width / width,
                one.height / height,
            )
            one.drawer.draw(sheet.add_axes(place), (one.width, one.height))


def _encoded(picture: Image.Image) -> bytes:
    """Encodes a picture as PNG; reduces it to 256 colours, then in size, until it is small enough."""
    while True:
        for reduced in (False, True):
            sink = io.BytesIO()
            (picture.quantize(256, Image.Quantize.MAXCOVERAGE) if reduced else picture).save(sink, "PNG")
            if sink.tell() <= LARGEST:
                return sink.getvalue()
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
