"""A figure as plain data: what it shows, and nothing of how it is drawn. `png.py` and `html.py` draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["measured", "control"]
"""What a curve or a bar stands for: a control is drawn in grey."""


@dataclass(frozen=True)
class Colours:
    """What the colours of a heatmap mean.

    Attributes:
        name: The quantity, with its unit.
        low: The value of the first colour; smaller values have it too.
        high: The value of the last colour; larger values have it too.
        centre: The value that is white, from which two hues lead away; None for one that grows from `low` to `high`.
    """

    name: str
    low: float
    high: float
    centre: float | None = None

    @classmethod
    def around(cls, name: str, values: Sequence[float], centre: float = 0.0) -> Colours:
        """Colours that reach as far to either side as the values lie from the centre."""
        reach = max((abs(value - centre) for value in values if math.isfinite(value)), default=0.0) or 1.0
        return cls(name, centre - reach, centre + reach, centre)


@dataclass(frozen=True)
class Heatmap:
    """A grid of values.

    Attributes:
        title: What the panel shows.
        across: What stands along the columns.
        down: What stands along the rows.
        columns: The columns' names, from the left.
        rows: The rows' names, from the top.
        values: A value for each row and column; None where there is none.
        colours: What the colours mean.
        labels: What is written into the cells, such as tokens.
    """

    title: str
    across: str
    down: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    colours: Colours
    labels: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class Curve:
    """A line through points, within a band where the points vary.

    Attributes:
        name: What it stands for.
        x: Where the points are.
        y: Their values.
        low: The lower edge of the band.
        high: The upper edge.
        role: Whether it was measured, or is what that is to be compared with.
        of: The curve that a control belongs to, where there are several: it has that one's colour.
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
        title: What the panel shows.
        across: What stands along the x axis.
        up: What stands along the y axis, with its unit.
        curves: The lines.
        names: Names of values of x that are no numbers, such as the embeddings before layer 0.
        span: What the y axis covers at least.
        whole: Whether x counts something, such as layers.
    """

    title: str
    across: str
    up: str
    curves: Sequence[Curve]
    names: Mapping[float, str] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    whole: bool = True


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: What it stands for.
        value: Its length.
        low: The lower end of its interval.
        high: The upper end.
        mark: A second value, shown as a mark beside the bar.
        role: Whether it was measured, or is what that is to be compared with.
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
        title: What the panel shows.
        along: What their lengths mean, with the unit.
        bars: The bars.
        mark: What the marks mean.
    """

    title: str
    along: str
    bars: Sequence[Bar]
    mark: str | None = None


Panel = Heatmap | Curves | Bars


@dataclass(frozen=True)
class Figure:
    """Panels under a title.

    Attributes:
        title: What was measured, on which model.
        subtitle: The prompt, or how many there were.
        panels: The panels, row by row.
        columns: Panels in a row.
        notes: What a reader must know to read it rightly.
    """

    title: str
    subtitle: str
    panels: Sequence[Panel]
    columns: int = 2
    notes: Sequence[str] = ()


def visible(text: str) -> str:
    """A token whose spaces can be seen."""
    return text.replace(" ", "␣")


def some_of(count: int, shown: int, noun: str) -> list[str]:
    """The note that says how many were drawn, where that is not all of them."""
    return [f"{shown} of {count} {noun} are drawn."] if shown < count else []


class Array(Protocol):
    """Numbers that a run kept, of which one part along the first axis is read at a time."""

    def __getitem__(self, index: int, /) -> Any:
        """That part, as an array of numpy."""
        ...


Arrays = Mapping[str, Array]
"""The arrays of a run by name."""
