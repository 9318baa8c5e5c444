"""Tables of typed columns: one declaration says what a cell holds, and how text shows it."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, WithJsonSchema

from nnterp_mcp.formatting import brief, elided, finite, number, on_one_line, percent, probability, quoted

Cell = str | bool | int | float | None | list[Any]
"""A table's cell; a list is a cell of several parts, such as tokens with their probabilities."""

_PLAIN = re.compile(r"[A-Za-z_/][\w./:+-]*", re.ASCII)
"""Texts that need no quotes: without spaces, and nothing like a number."""

_Row = TypeVar("_Row")


class _Mean(Protocol):
    """A mean with its 95 % interval."""

    low: float | None
    high: float | None


class Kind(StrEnum):
    """Types of columns: how a value becomes a cell of both channels, and how text shows that cell.

    Attributes:
        PLAIN: A number, in nats where nothing else is said, or a word.
        TOKEN: A token, or several, cut where they are long; in quotes.
        TEXT: A text; in quotes.
        EITHER: Two texts of which one stands in the place of the other, or one text; in quotes, with a slash.
        TOKENS: Pairs or triples of tokens and a number, or one of these; tokens in quotes.
        TOP: Top tokens: pairs of a token and its probability, or one pair; tokens in quotes.
        PROBABILITY: From 0 to 1.
        RANKED: A probability and a rank.
        HUNDREDTHS: From 0 to 1, to two digits after the point.
        BRIEF: Two digits after the point, or two that mean something.
        INTERVAL: The ends of the 95 % interval of a mean.
        PERCENT: A share in per cent.
        RAW: A value of a run as it is; texts in quotes where they are more than a word.
    """

    PLAIN = "plain"
    TOKEN = "token"
    TEXT = "text"
    EITHER = "either"
    TOKENS = "tokens"
    TOP = "top"
    PROBABILITY = "probability"
    RANKED = "ranked"
    HUNDREDTHS = "hundredths"
    BRIEF = "brief"
    INTERVAL = "interval"
    PERCENT = "percent"
    RAW = "raw"

    def cell(self, value: Any) -> Cell:
        """The cell of a value, the same in both channels."""
        return value if value is None or self not in _CELLS else _CELLS[self](value)

    def text(self, cell: Cell) -> str:
        """A cell as text: a dash for nothing, parts joined by spaces, pairs by commas."""
        return cell_text(_QUOTED[self](cell) if self in _QUOTED and cell is not None else cell)


def _tokens(value: Any, of: Callable[[Any], Cell] = lambda measured: measured) -> list[Any]:
    """One or several pairs or triples of tokens and a number, their tokens cut where they are long."""
    if value and isinstance(value[0], list | tuple):
        return [_tokens(part, of) for part in value]
    return [elided(part) if isinstance(part, str) else of(part) for part in value]


def _interval(mean: _Mean) -> Cell:
    return [brief(mean.low or 0.0), "to", brief(mean.high or 0.0)]


_CELLS: dict[Kind, Callable[[Any], Cell]] = {
    Kind.TOKEN: lambda value: list(map(elided, value)) if isinstance(value, list) else elided(value),
    Kind.TOKENS: _tokens,
    Kind.TOP: lambda pairs: _tokens(pairs, probability),
    Kind.PROBABILITY: probability,
    Kind.RANKED: lambda both: [probability(both[0]), both[1]],
    Kind.HUNDREDTHS: lambda value: round(value, 2),
    Kind.BRIEF: brief,
    Kind.INTERVAL: _interval,
    Kind.PERCENT: percent,
}


def _quoted_tokens(cell: Any) -> Cell:
    """Pairs and triples whose texts are in quotes, but for the last place, which has the number."""
    if cell and isinstance(cell[0], list):
        return [_quoted_tokens(part) for part in cell]
    return [*(quoted(part) if isinstance(part, str) else part for part in cell[:-1]), cell[-1]]


def _quoted_values(cell: Any) -> Cell:
    if isinstance(cell, list):
        return [_quoted_values(part) for part in cell]
    return quoted(cell) if isinstance(cell, str) and _PLAIN.fullmatch(cell) is None else cell


_QUOTED: dict[Kind, Callable[[Any], Cell]] = {
    Kind.TOKEN: lambda cell: ", ".join(map(quoted, cell)) if isinstance(cell, list) else quoted(str(cell)),
    Kind.TEXT: lambda cell: quoted(str(cell)),
    Kind.EITHER: lambda cell: " / ".join(map(quoted, cell if isinstance(cell, list) else [cell])),
    Kind.TOKENS: _quoted_tokens,
    Kind.TOP: _quoted_tokens,
    Kind.RAW: _quoted_values,
}


def cell_text(cell: Cell) -> str:
    """A cell as text: a dash for nothing; parts joined by spaces, pairs by commas."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return on_one_line(cell)
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, list):
        separator = ", " if any(isinstance(part, list) for part in cell) else " "
        return separator.join(map(cell_text, cell))
    return number(cell)


class Table(BaseModel):
    """Rows under named columns; the units stand in the names.

    Attributes:
        columns: Their names.
        rows: The cells.
        kinds: The columns' types, which text needs and structured content leaves out; none for plain ones.
    """

    columns: list[str]
    rows: list[list[Cell]]
    kinds: list[Kind] = []

    def text(self) -> str:
        """Lines of cells joined by ` | `, the names of the columns first."""
        return "\n".join(" | ".join(row) for row in [[*map(on_one_line, self.columns)], *self._cells()])

    def html(self) -> str:
        """An HTML table of the same cells as the text."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._cells())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[list[str]]:
        kinds = self.kinds or [Kind.PLAIN] * len(self.columns)
        return [[kind.text(cell) for kind, cell in zip(kinds, row, strict=True)] for row in self.rows]

    def csv(self) -> str:
        """Comma-separated values with every digit; a cell of several parts as JSON."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(
            [compact_json(cell) if isinstance(cell, list | bool) else cell for cell in row] for row in self.rows
        )
        return sink.getvalue().removesuffix("\n")

    def json_lines(self) -> str:
        """One JSON object a row."""
        return "\n".join(compact_json(dict(zip(self.columns, row, strict=True))) for row in self.rows)


def compact_json(value: object) -> str:
    """Compact JSON; numbers that are not finite become null."""
    return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


TableField = Annotated[
    Table,
    WithJsonSchema({"type": "object", "required": ["columns", "rows"]}),
]
"""A table in an answer; its cells' types are not spelled out, since an agent pays for every definition."""


@dataclass(frozen=True)
class Column(Generic[_Row]):
    """A column of a table.

    Attributes:
        name: Its name, with the unit.
        of: The value that a row has in it.
        kind: Its type.
        shown: Whether the table has it.
        cost: Tokens that a cell takes, about.
    """

    name: str
    of: Callable[[_Row], Any]
    kind: Kind = Kind.PLAIN
    shown: bool = True
    cost: int = 0


def tabulate(columns: Iterable[Column[_Row]], rows: Iterable[_Row]) -> Table:
    """A table of the columns that are shown."""
    shown = [column for column in columns if column.shown]
    return Table(
        columns=[column.name for column in shown],
        rows=[[column.kind.cell(column.of(row)) for column in shown] for row in rows],
        kinds=[column.kind for column in shown],
    )
