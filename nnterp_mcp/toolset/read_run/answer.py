"""From a result of `read_run` to its answer, and the answer as text."""

from __future__ import annotations

import csv
import io
import json
import re

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, finite, plural, quoted
from nnterp_mcp.render import cell, lines, table
from nnterp_mcp.toolset.read_run.result import ReadRunAnswer, ReadRunResult

_LONGEST = 80
"""Characters of a text in a row of a table."""

_LARGEST = 300_000
"""Characters of the rows of a page of CSV or JSON."""

_PLAIN = re.compile(r"[A-Za-z_/][\w./:+-]*", re.ASCII)
"""Texts that need no quotes: no spaces to be seen, and nothing like a number."""

_PARTS = 128
"""Parts of the cells in a column of a table, so that fewer rows show more of each."""

_NARROWEST = 8
"""Parts that a cell shows however many rows there are."""


def digest(result: ReadRunResult) -> ReadRunAnswer:
    """The page with its place in the whole; what is the same in all its rows is said once."""
    if result.format != "table":
        result = result.model_copy(update={"table": _sized(result.table)})
    count = len(result.table.rows)
    left = result.total - result.offset - count
    notes = [f"{plural(left, 'row')} follow: offset={result.offset + count}."] if left > 0 else []
    none = f"no rows from {result.offset} on, of {result.total}" if result.total else "no row is as asked for"
    shown = f"rows {result.offset} to {result.offset + count - 1} of {result.total}" if count else none
    content, same, cut = _fitted(result.table) if result.format == "table" else (result.table, {}, False)
    if cut:
        notes.append("Cells that end in … go on; format='json' shows them whole, fewer rows more of them.")
    return ReadRunAnswer(
        finding=f"{result.part} of {result.run_id}: {shown}.",
        notes=notes,
        run_id=result.run_id,
        table=content,
        same=same,
        total=result.total,
        truncated=left > 0 or cut,
        format=result.format,
    )


def _sized(content: Table) -> Table:
    """The first rows of a table, as many as one message takes: it holds them twice, as text and as structure."""
    room, rows = _LARGEST, content.rows
    for count, row in enumerate(rows):
        room -= len(_json(row))
        if room < 0:
            return Table(columns=content.columns, rows=rows[: max(1, count)])
    return content


def _fitted(content: Table) -> tuple[Table, dict[str, Cell], bool]:
    """A table that an agent can afford, what is the same in all its rows, and whether a cell was cut short."""
    kept, same = _factored(content)
    width = max(_NARROWEST, _PARTS // max(1, len(kept.rows)))
    rows = [[_short(value, width) for value in row] for row in kept.rows]
    short = {name: _short(value, width) for name, value in same.items()}
    return Table(columns=kept.columns, rows=rows), short, rows != kept.rows or short != same


def _factored(content: Table) -> tuple[Table, dict[str, Cell]]:
    """A table without the columns that hold one value in all its rows, and these values."""
    if len(content.rows) < 2:
        return content, {}
    columns = list(zip(*content.rows, strict=True))
    same = [all(value == column[0] for value in column) for column in columns]
    kept = [place for place, one in enumerate(same) if not one]
    return (
        Table(
            columns=[content.columns[place] for place in kept],
            rows=[[row[place] for place in kept] for row in content.rows],
        ),
        {content.columns[place]: columns[place][0] for place, one in enumerate(same) if one},
    )


def render(answer: ReadRunAnswer) -> str:
    """The rows as a table, as CSV, or as one JSON object a line."""
    same = ", ".join(f"{name} {cell(_quoted(value))}" for name, value in answer.same.items())
    return lines(answer, f"in every row: {same}" if same else "", _FORMATS[answer.format](answer.table))


def _as_table(content: Table) -> str:
    return table(Table(columns=content.columns, rows=[[_quoted(value) for value in row] for row in content.rows]))


def _quoted(value: Cell) -> Cell:
    """A cell whose texts show their spaces."""
    if isinstance(value, list):
        return [_quoted(part) for part in value]
    return quoted(value) if isinstance(value, str) and _PLAIN.fullmatch(value) is None else value


def _short(value: Cell, width: int) -> Cell:
    """A cell whose end is left out where it is long."""
    if isinstance(value, list):
        more = [f"… {len(value) - width} more"] if len(value) > width else []
        return [*(_short(part, width) for part in value[:width]), *more]
    return elided(value, _LONGEST) if isinstance(value, str) else value


def _as_csv(content: Table) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(content.columns)
    writer.writerows([_plain(value) for value in row] for row in content.rows)
    return sink.getvalue().removesuffix("\n")


def _plain(value: Cell) -> Cell:
    return _json(value) if isinstance(value, list | bool) else value


def _as_json(content: Table) -> str:
    rows = [dict(zip(content.columns, row, strict=True)) for row in content.rows]
    return "\n".join(map(_json, rows))


def _json(value: object) -> str:
    return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}
