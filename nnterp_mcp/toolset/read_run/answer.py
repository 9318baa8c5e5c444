"""From a result of `read_run` to its answer, and the answer as text."""

from __future__ import annotations

import re

from nnterp_mcp.formatting import elided, plural
from nnterp_mcp.table import Cell, Kind, Table, compact_json
from nnterp_mcp.toolset.read_run.result import ReadRunAnswer, ReadRunResult

_LARGEST = 300_000
"""Characters of the rows of a page of CSV or JSON."""

_PLAIN = re.compile(r"[A-Za-z_/][\w./:+-]*", re.ASCII)
"""Texts that need no quotes: no spaces to be seen, and nothing like a number."""

_PARTS = 128
"""Parts of the cells in a column of a table, so that fewer rows show more of each."""

_CHARACTERS = 10
"""Characters of a text for each part that a list would show."""

_NARROWEST = 8
"""Parts that a cell shows however many rows there are."""


def digest(result: ReadRunResult) -> ReadRunAnswer:
    """The page with its place in the whole; what is the same in all its rows is said once."""
    if result.format != "table":
        result = result.model_copy(update={"table": _sized(result.table)})
    count = len(result.table.rows)
    left = result.total - result.offset - count
    notes = [f"{plural(left, 'more row')}: offset={result.offset + count}."] if left > 0 else []
    none = f"no rows from {result.offset} on, of {result.total}" if result.total else "no row matches"
    shown = f"rows {result.offset} to {result.offset + count - 1} of {result.total}" if count else none
    content, same, cut = _fitted(result.table) if result.format == "table" else (result.table, {}, False)
    if cut:
        notes.append("Cells that end in … are cut: format='json' shows them whole, fewer rows show more of each.")
    return ReadRunAnswer(
        finding=f"{result.part} of {result.run_id}: {shown}." if result.run_id else _ended(result),
        notes=notes,
        run_id=result.run_id or None,
        table=content,
        same=same,
        total=result.total,
        truncated=left > 0 or cut,
        format=result.format,
    )


def _ended(result: ReadRunResult) -> str:
    states = [row[result.table.columns.index("state")] for row in result.table.rows]
    ended = [row[0] for row, state in zip(result.table.rows, states, strict=True) if state != "running"]
    names = f": {', '.join(map(str, ended))}" if ended else ""
    return f"{len(ended)} of {plural(len(states), 'run')} ended{names}."


def _sized(content: Table) -> Table:
    """The first rows of a table, as many as one message takes: it holds them twice, as text and as structure."""
    room, rows = _LARGEST, content.rows
    for count, row in enumerate(rows):
        room -= len(compact_json(row))
        if room < 0:
            return content.model_copy(update={"rows": rows[: max(1, count)]})
    return content


def _fitted(content: Table) -> tuple[Table, dict[str, Cell], bool]:
    """A table that an agent can afford, what is the same in all its rows, and whether a cell was cut short."""
    columns = list(zip(*content.rows, strict=True)) if len(content.rows) > 1 else []
    alike = zip(content.columns, columns, strict=False)
    same = {name: cells[0] for name, cells in alike if all(cell == cells[0] for cell in cells)}
    kept = [place for place, name in enumerate(content.columns) if name not in same]
    width = max(_NARROWEST, _PARTS // max(1, len(content.rows)))
    rows = [[row[place] for place in kept] for row in content.rows]
    shown = [[_short(cell, width) for cell in row] for row in rows]
    short = {name: _short(cell, width) for name, cell in same.items()}
    table = Table(columns=[content.columns[place] for place in kept], rows=shown, kinds=[Kind.RAW] * len(kept))
    return table, short, shown != rows or short != same


def _short(value: Cell, width: int) -> Cell:
    """A cell whose end is left out where it is long."""
    if isinstance(value, list):
        more = [f"… {len(value) - width} more"] if len(value) > width else []
        return [*(_short(part, width) for part in value[:width]), *more]
    return elided(value, _CHARACTERS * width) if isinstance(value, str) else value
