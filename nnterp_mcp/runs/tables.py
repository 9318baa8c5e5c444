"""A result as tables: one for every list in it; nested lists repeat the columns of the rows around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
from pydantic import BaseModel

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import plural
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.runs.records import ArrayCard
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.table import Kind, Table

TableRow = dict[str, Any]


def tables_of(result: BaseModel) -> dict[str, list[TableRow]]:
    """Every table of a result, by the path to its list: `readings`, `readings.layers`."""
    found: dict[str, list[TableRow]] = {}
    for name, value in result:
        if isinstance(value, list) and value and isinstance(value[0], BaseModel | list):
            _collect(name, value, {}, found)
    return found


def _collect(path: str, items: Sequence[Any], above: TableRow, found: dict[str, list[TableRow]]) -> None:
    rows = found.setdefault(path, [])
    for index, item in enumerate(items):
        if not isinstance(item, BaseModel):
            rows.append({**above, "index": index, path.rsplit(".", 1)[-1]: _cell(item)})
            continue
        own = dict(_scalars(item))
        nested = dict(_nested(item))
        clash = own.keys() & above.keys()
        row = {**above, **{f"{path}.{name}" if name in clash else name: value for name, value in own.items()}}
        rows.append(row)
        for name, inner in nested.items():
            _collect(f"{path}.{name}", inner, row, found)


def _scalars(item: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of an item that are cells; those of a part under dotted names, its mean under the part's own."""
    for name, value in item:
        if isinstance(value, BaseModel):
            yield from _scalars(value, f"{prefix}{name}.")
        elif not _is_table(value):
            yield prefix.removesuffix(".") if prefix and name == "mean" else f"{prefix}{name}", _cell(value)


def _nested(item: BaseModel) -> Iterator[tuple[str, list[Any]]]:
    yield from ((name, value) for name, value in item if _is_table(value))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], BaseModel)


def _cell(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return [_cell(part) for _, part in value]
    if isinstance(value, list | tuple):
        return [_cell(part) for part in value]
    if isinstance(value, dict):
        return [[key, _cell(part)] for key, part in value.items()]
    return value


def name_parts(result: BaseModel, arrays: Mapping[str, ArrayCard]) -> str:
    """The note that lists the parts of a run for `read_run`: tables with their columns, and arrays with their axes."""
    found: dict[str, list[str]] = {}
    parts: list[str] = []
    for name, rows in tables_of(result).items():
        found[name] = columns_of(rows)
        above = found.get(name.rpartition(".")[0], [])
        own = [column for column in found[name] if column not in above]
        inherited = [f"those of {name.rpartition('.')[0]}"] if above else []
        parts.append(f"{name} ({plural(len(rows), 'row')}: {', '.join([*inherited, *own])})")
    parts += [f"{name} ({' × '.join(card.axes)})" for name, card in arrays.items()]
    return f"Parts for read_run: {', '.join([*parts, *EVERY_RUN])}."


EVERY_RUN = ("result", "record")
"""Parts that every run has: what is no table in its result, and its record; one fact a row."""


def facts_of(data: Any, path: str = "") -> list[TableRow]:
    """The leaves of nested data, one a row, under dotted names; lists are leaves."""
    if isinstance(data, dict):
        return [row for name, part in data.items() for row in facts_of(part, f"{path}.{name}" if path else name)]
    return [{"field": path, "value": _cell(data)}]


def columns_of(rows: Sequence[TableRow]) -> list[str]:
    """Every column that a row of them has."""
    return list(dict.fromkeys(name for row in rows for name in row))


def filter_rows(rows: Sequence[TableRow], where: Mapping[str, Any]) -> list[TableRow]:
    """The rows whose columns have the values that are asked for.

    Raises:
        InvalidRequest: A column does not exist.
    """
    _require(where, columns_of(rows))
    return [row for row in rows if all(_matches(row.get(name), wanted) for name, wanted in where.items())]


def as_table(rows: Sequence[TableRow], columns: Sequence[str], asked: Sequence[str] | None) -> Table:
    """Rows under their columns, or under those that are asked for.

    Raises:
        InvalidRequest: A column does not exist.
    """
    _require(asked or (), columns)
    chosen = list(asked or columns)
    cells = [[row.get(name) for name in chosen] for row in rows]
    return Table(columns=chosen, rows=cells, kinds=[Kind.RAW] * len(chosen))


def columns_of_array(name: str, card: ArrayCard) -> list[str]:
    """The columns of an array's rows: its axes but the last, and the numbers along that one."""
    *outer, last = card.axes
    return [*outer, f"{name} by {last}"]


def read_array(
    store: RunStore, run_id: str, name: str, card: ArrayCard, where: Mapping[str, Any], offset: int, limit: int
) -> tuple[list[TableRow], int]:
    """Rows of an array: one for each index along all axes but the last, whose numbers form one cell.

    Returns:
        The rows of the page, and how many there are in all.

    Raises:
        InvalidRequest: An axis does not exist, or the array is damaged.
    """
    _require(where, list(card.axes))
    chosen = [
        [place for place, label in enumerate(labels) if axis not in where or _matches(label, where[axis])]
        for axis, labels in card.axes.items()
    ]
    *outer, last = chosen
    total = int(np.prod([len(places) for places in outer])) if last else 0
    *names, numbers_of = columns_of_array(name, card)
    rows: list[TableRow] = []
    for places in islice(product(*outer), offset, offset + limit) if last else ():
        index = (*(slice(place, place + 1) for place in places), slice(last[0], last[-1] + 1))
        numbers = store.read_array(run_id, name, index).reshape(-1)[np.array(last) - last[0]]
        labels = {axis: card.axes[axis][place] for axis, place in zip(names, places, strict=True)}
        rows.append({**labels, numbers_of: numbers.tolist()})
    return rows, total


def _matches(value: Any, wanted: Any) -> bool:
    """True if a cell equals or contains one of the wanted values; numbers may be given as text."""
    if isinstance(wanted, list):
        return any(_matches(value, one) for one in wanted)
    if isinstance(value, list):
        return any(_matches(part, wanted) for part in value)
    if isinstance(wanted, str) and value is not None:
        return wanted in value if isinstance(value, str) else wanted == str(value)
    return value == wanted


def _require(asked: Mapping[str, Any] | Sequence[str], names: Sequence[str]) -> None:
    for name in asked:
        if name not in names:
            raise InvalidRequest(f"there is no column {shown(name)}: the columns are {', '.join(names)}.")
