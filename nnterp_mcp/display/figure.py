"""Figures as plain data, from which pictures (`png.py`), pages (`html.py`) and the viewer are drawn alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from unicodedata import bidirectional

Role = Literal["measured", "control"]
"""The role of a curve or a bar; controls are grey."""


@dataclass(frozen=True)
class Colours:
    """The colour scale of a heatmap.

    Attributes:
        name: The quantity, with its unit.
        low: The value of the first colour; smaller values have it too.
        high: The value of the last colour; larger values have it too.
        centre: The white middle of a diverging scale; None for a sequential scale.
    """

    name: str
    low: float
    high: float
    centre: float | None = None

    @classmethod
    def around(cls, name: str, values: Sequence[float], centre: float = 0.0) -> Colours:
        """A symmetric diverging scale that covers the values."""
        reach = max((abs(value - centre) for value in values if math.isfinite(value)), default=0.0) or 1.0
        return cls(name, centre - reach, centre + reach, centre)


@dataclass(frozen=True)
class Heatmap:
    """A grid of values.

    Attributes:
        title: The panel's title.
        across: The label of the x axis.
        down: The label of the y axis.
        columns: The columns' names, from the left.
        rows: The rows' names, from the top.
        values: A value for each row and column; None where there is none.
        colours: The colour scale.
        labels: Text in the cells, such as tokens.
        square: Draw cells as wide as high.
        focus: The row and column of the cell at which a page opens; the largest value by default.
    """

    title: str
    across: str
    down: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    colours: Colours
    labels: Sequence[Sequence[str]] | None = None
    square: bool = False
    focus: tuple[int, int] | None = None


@dataclass(frozen=True)
class Curve:
    """A line through points, with an optional band.

    Attributes:
        name: Its name in the legend.
        x: The x of each point.
        y: The y of each point.
        low: The lower edge of the band.
        high: The upper edge.
        role: Measured, or a control to compare with.
        of: The curve that a control belongs to, where there are several; the control gets its colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    role: Role = "measured"
    of: str | None = None


@dataclass(frozen=True)
class Curves:
    """Lines over one axis.

    Attributes:
        title: The panel's title.
        across: The label of the x axis.
        up: The label of the y axis, with its unit.
        curves: The lines.
        names: Names of values of x that are no numbers, such as the embeddings before layer 0.
        span: The smallest range of the y axis.
        ranks: True if y is a rank: 1 on top, on a logarithmic axis.
    """

    title: str
    across: str
    up: str
    curves: Sequence[Curve]
    names: Mapping[float, str] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    ranks: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: Its label.
        value: Its length.
        low: The lower end of its interval.
        high: The upper end.
        mark: A second value, shown as a mark.
        role: Measured, or a control to compare with.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    role: Role = "measured"


@dataclass(frozen=True)
class Bars:
    """Bars, the first on top.

    Attributes:
        title: The panel's title.
        along: The label of the x axis, with its unit.
        bars: The bars.
        mark: The name of the marks in the legend.
        signed: True if values can be of either sign: colours tell those that lower from those that raise.
    """

    title: str
    along: str
    bars: Sequence[Bar]
    mark: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class Passages:
    """Passages under their names, such as what a model generated.

    Attributes:
        title: The panel's title.
        rows: A name and a text each.
    """

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph.

    Attributes:
        name: Its label.
        x: How far to the right it stands, from 0 to 1.
        level: The row in which it stands, from 0 at the bottom.
    """

    name: str
    x: float
    level: int


@dataclass(frozen=True)
class GraphEdge:
    """An edge of a graph.

    Attributes:
        sender: The name of the node at which it begins.
        receiver: That of the node at which it ends.
        value: Its strength, of either sign.
        label: What tells it from other edges between the two.
        bend: How far its middle is to the left of the straight line between the two, in steps.
    """

    sender: str
    receiver: str
    value: float
    label: str = ""
    bend: float = 0.0


@dataclass(frozen=True)
class Graph:
    """Nodes in rows, and edges between them, as wide as they are strong.

    Attributes:
        title: The panel's title.
        strength: The name of the edges' values, with its unit.
        nodes: The nodes.
        edges: The edges.
    """

    title: str
    strength: str
    nodes: Sequence[GraphNode]
    edges: Sequence[GraphEdge]


Panel = Heatmap | Curves | Bars | Passages | Graph


@dataclass(frozen=True)
class Figure:
    """Panels under a title.

    Attributes:
        title: The measurement and the model.
        subtitle: The prompt, or how many there were.
        panels: The panels, row by row.
        columns: Panels in a row.
        notes: Caveats for readers.
    """

    title: str
    subtitle: str
    panels: Sequence[Panel]
    columns: int = 2
    notes: Sequence[str] = ()


MARKS = {" ": "␣", "\u00a0": "⍽", "\n": "⏎", "\t": "⇥", "\r": "␍"}
"""Whitespace as figures show it."""


def visible(text: str) -> str:
    """A token with visible whitespace."""
    return text.translate(str.maketrans(MARKS))


_LEFT_TO_RIGHT = "\u200e"
"""An invisible mark that sets the direction of what is next to it."""

_FROM_THE_LEFT = re.compile(r"<0x[0-9A-F]{2}>| (?:-?\d+|\(-?\d+\))$")
"""Bytes and the position at the end of a token's name, which are read from the left in every language."""


def ordered(name: str) -> str:
    """A token's name with its bytes and position in their order, if it has letters that are read from the right."""
    if not any(bidirectional(char) in ("R", "AL") for char in name):
        return name
    return _LEFT_TO_RIGHT + _FROM_THE_LEFT.sub(lambda found: f"{_LEFT_TO_RIGHT}{found[0]}{_LEFT_TO_RIGHT}", name)


def some_of(count: int, shown: int, noun: str) -> list[str]:
    """The note on how many were drawn, if not all."""
    return [f"{shown} of {count} {noun} are drawn."] if shown < count else []


class Array(Protocol):
    """An array of a run, read slice by slice along the first axis."""

    def __getitem__(self, index: int, /) -> Any:
        """That part, as an array of numpy."""
        ...


Arrays = Mapping[str, Array]
"""The arrays of a run by name."""
