"""A result as tables: one for every list in it, stored by columns, of which a page reads only the cells that it shows.

A nested list is a table too; its rows repeat the columns of the rows around them, which are stored once, in the outer
table. Numbers are stored as they are, any other cell as an index into the distinct cells of its column, which are JSON.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel
from pydantic_core import from_json, to_json
from safetensors.numpy import save

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import plural
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.runs.records import ArrayCard
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.table import Kind, Table

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped

TableRow = dict[str, Any]

_FORMAT = 1
_LARGEST = 1 << 63
_SCALARS = {int, float, str, bool, type(None)}
_DECODED = 4096
"""Cells that are decoded at once: other threads of the process wait no longer than that takes."""


@dataclass
class _Columns:
    """A table before it is stored: its own columns, and the row of the outer table that each row belongs to."""

    count: int
    outer: str | None = None
    rows: list[int] = field(default_factory=list[int])
    own: dict[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])


def encode_tables(result: BaseModel, facts: Mapping[str, Any]) -> bytes:
    """Every table of a result as one file for `ResultTables`: by the path to its list, `readings`, `readings.layers`.

    Args:
        result: The result.
        facts: Data to be stored with them, as JSON.
    """
    found: dict[str, _Columns] = {}
    for name, value in result:
        if isinstance(value, list) and value and isinstance(value[0], BaseModel):
            _collect(name, value, _Columns(len(value)), found)
        elif isinstance(value, list) and value and isinstance(value[0], list):
            own: dict[str, Sequence[Any]] = {"index": range(len(value)), name: [_cell(item) for item in value]}
            found[name] = _Columns(len(value), own=own)
    rest = result.model_dump(exclude=set(found))
    tensors: dict[str, Shaped[np.ndarray, "*axes"]] = {}
    index: dict[str, Any] = {}
    for number, (path, table) in enumerate(found.items()):
        kinds = {name: _encode(tensors, f"{number}.{at}", cells) for at, (name, cells) in enumerate(table.own.items())}
        index[path] = {
            "count": table.count,
            "outer": table.outer,
            "columns": list(table.own),
            "kinds": list(kinds.values()),
        }
        if table.outer is not None:
            tensors[f"{number}.rows"] = np.array(table.rows, dtype=np.int32)
    told = {"format": _FORMAT, "tables": index, "facts": {**facts, "result": rest}}
    return save(tensors, {"told": to_json(told, inf_nan_mode="constants").decode()})


def _collect(path: str, items: Sequence[BaseModel], table: _Columns, found: dict[str, _Columns]) -> None:
    found[path] = table
    columns, nested = _split(items)
    taken = set(_columns_of(found, table.outer))
    table.own = {f"{path}.{name}" if name in taken else name: cells for name, cells in columns.items()}
    for name, lists in nested.items():
        rows = [row for row, inner in lists.items() for _ in inner]
        inner = [item for part in lists.values() for item in part]
        _collect(f"{path}.{name}", inner, _Columns(len(inner), path, rows), found)


def _columns_of(found: Mapping[str, _Columns], path: str | None) -> list[str]:
    return [] if path is None else [*_columns_of(found, found[path].outer), *found[path].own]


def _split(items: Sequence[BaseModel]) -> tuple[dict[str, list[Any]], dict[str, dict[int, Any]]]:
    """The columns of some items, and by field the lists in them that are tables, by the item's number.

    The fields of a part become columns under dotted names, its mean under the part's own. A field that is left out of
    the record where it is None is no column where all items leave it out.
    """
    columns: dict[str, list[Any]] = {}
    nested: dict[str, dict[int, Any]] = {}
    known = {name: info for kind in dict.fromkeys(map(type, items)) for name, info in kind.model_fields.items()}
    for name, info in known.items():
        values = [getattr(item, name, None) for item in items]
        if info.exclude_if is not None and all(value is None for value in values):
            continue
        if _SCALARS.issuperset(map(type, values)):
            columns[name] = values
            continue
        parts = {row: value for row, value in enumerate(values) if isinstance(value, BaseModel)}
        lists = {row: value for row, value in enumerate(values) if _is_table(value)}
        rest = [None if row in parts or row in lists else _cell(value) for row, value in enumerate(values)]
        if any(rest) or not (parts or lists):
            columns[name] = rest
        if lists:
            nested[name] = lists
        for inner, cells in _split(list(parts.values()))[0].items() if parts else ():
            column = columns.setdefault(name if inner == "mean" else f"{name}.{inner}", [None] * len(items))
            for row, cell in zip(parts, cells, strict=True):
                column[row] = cell
    return columns, nested


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], BaseModel)


def _cell(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return [_cell(part) for _, part in value]
    if isinstance(value, list | tuple):
        return [part if type(part) in _SCALARS else _cell(part) for part in value]
    if isinstance(value, dict):
        return [[key, _cell(part)] for key, part in value.items()]
    return value


def _encode(tensors: dict[str, Shaped[np.ndarray, "*axes"]], name: str, cells: Sequence[Any]) -> str:
    """Adds a column's tensors; returns its kind."""
    kinds = set(map(type, cells))
    if kinds == {int} and max(map(abs, cells)) < _LARGEST:
        tensors[name] = np.array(cells, dtype=np.int64)
        return "number"
    if kinds == {float}:
        tensors[name] = np.array(cells, dtype=np.float64)
        return "number"
    distinct: dict[bytes, int] = {}
    codes = [distinct.setdefault(to_json(cell, inf_nan_mode="constants"), len(distinct)) for cell in cells]
    tensors[name] = np.array(codes, dtype=np.int32)
    tensors[f"{name}.ends"] = np.cumsum([len(text) + 1 for text in distinct], dtype=np.int64)
    tensors[f"{name}.text"] = np.frombuffer(b",".join(distinct) + b",", dtype=np.uint8)
    return "text"


@dataclass(frozen=True)
class _Column:
    """A stored column: numbers, or codes of distinct cells, each JSON that ends with a comma."""

    values: Shaped[np.ndarray, " row"]
    ends: Int[np.ndarray, " cell"] | None = None
    text: Shaped[np.ndarray, " byte"] | None = None

    def cells(self, rows: Int[np.ndarray, " row"]) -> list[Any]:
        """The cells of some rows."""
        chosen = self.values[rows]
        return chosen.tolist() if self.ends is None else [self._decoded(code, code + 1)[0] for code in chosen.tolist()]

    def matching(self, wanted: Any) -> Bool[np.ndarray, " row"]:
        """The rows whose cell equals or contains a wanted value, or one of a list of them."""
        if self.ends is None:
            numbers = [_number(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
            return np.isin(self.values, [one for one in numbers if one is not None])
        found = np.zeros(len(self.ends), dtype=bool)
        for begin, end in self._candidates(wanted):
            found[begin:end] = [_matches(cell, wanted) for cell in self._decoded(begin, end)]
        return found[self.values]

    def _candidates(self, wanted: Any) -> Iterator[tuple[int, int]]:
        """Ranges of distinct cells that may match: for a word, those in whose JSON it stands."""
        assert self.ends is not None
        assert self.text is not None
        if not isinstance(wanted, str) or wanted in ("", "True", "False") or _number(wanted) is not None:
            yield from ((begin, min(begin + _DECODED, len(self.ends))) for begin in range(0, len(self.ends), _DECODED))
            return
        word = re.compile(re.escape(to_json(wanted)[1:-1]))
        places = [found.start() for found in word.finditer(self.text.data)]
        for cell in np.unique(np.searchsorted(self.ends, places, side="right")).tolist():
            yield cell, cell + 1

    def _decoded(self, begin: int, end: int) -> list[Any]:
        """Distinct cells, from one number to another."""
        assert self.ends is not None
        assert self.text is not None
        first = int(self.ends[begin - 1]) if begin else 0
        return from_json(b"[" + self.text[first : int(self.ends[end - 1]) - 1].tobytes() + b"]")


class ResultTables:
    """The tables of a stored result.

    Attributes:
        counts: The rows of each table, by its path.
        facts: The data that were stored with them; under `result` those fields of the result that are no tables.
    """

    def __init__(self, content: bytes | mmap.mmap) -> None:
        """Opens what `encode_tables` made.

        Raises:
            ValueError: It is no such thing, or of another version.
        """
        size = 8 + int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8:size])
        told = from_json(header.pop("__metadata__", {}).get("told", "{}"))
        if told.get("format") != _FORMAT:
            raise ValueError("tables of another version")
        self.facts: dict[str, Any] = told["facts"]
        self._index: dict[str, Any] = told["tables"]
        self._numbers = {path: number for number, path in enumerate(self._index)}
        self._cards = header
        self._content = content
        self._begin = size
        self.counts: dict[str, int] = {path: table["count"] for path, table in self._index.items()}

    @classmethod
    def at(cls, path: Path) -> ResultTables:
        """Opens a file; its cells are read when they are asked for.

        Raises:
            OSError: It cannot be opened.
            ValueError: It holds something else.
        """
        with path.open("rb") as source:
            return cls(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))

    def columns(self, path: str) -> list[str]:
        """The columns of a table, those of the rows around it first."""
        table = self._index[path]
        outer = [] if table["outer"] is None else self.columns(table["outer"])
        return [*outer, *table["columns"]]

    def page(
        self, path: str, where: Mapping[str, Any], offset: int = 0, limit: int | None = None
    ) -> tuple[list[TableRow], int]:
        """Rows whose columns have the values that are asked for.

        Returns:
            The rows from `offset`, at most `limit`, and how many there are in all.

        Raises:
            InvalidRequest: A column does not exist.
        """
        columns = self.columns(path)
        _require(where, columns)
        masks = [self._matching(path, name, wanted) for name, wanted in where.items()]
        every = np.flatnonzero(np.logical_and.reduce(masks)) if masks else np.arange(self.counts[path])
        rows = every[offset : None if limit is None else offset + limit]
        cells = [self._cells(path, name, rows) for name in columns]
        return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)], len(every)

    def _matching(self, path: str, name: str, wanted: Any) -> Bool[np.ndarray, " row"]:
        table = self._index[path]
        if name in table["columns"]:
            return self._column(path, name).matching(wanted)
        return self._matching(table["outer"], name, wanted)[self._tensor(f"{self._numbers[path]}.rows")]

    def _cells(self, path: str, name: str, rows: Int[np.ndarray, " row"]) -> list[Any]:
        table = self._index[path]
        if name in table["columns"]:
            return self._column(path, name).cells(rows)
        return self._cells(table["outer"], name, self._tensor(f"{self._numbers[path]}.rows")[rows])

    def _column(self, path: str, name: str) -> _Column:
        table = self._index[path]
        at = table["columns"].index(name)
        key = f"{self._numbers[path]}.{at}"
        if table["kinds"][at] == "number":
            return _Column(self._tensor(key))
        return _Column(self._tensor(key), self._tensor(f"{key}.ends"), self._tensor(f"{key}.text"))

    def _tensor(self, name: str) -> Shaped[np.ndarray, " value"]:
        """A tensor, mapped and not read."""
        card = self._cards[name]
        begin, end = card["data_offsets"]
        kind = np.dtype({"I64": "<i8", "F64": "<f8", "I32": "<i4", "U8": "u1"}[card["dtype"]])
        return np.frombuffer(self._content, kind, (end - begin) // kind.itemsize, self._begin + begin)


def name_parts(tables: ResultTables, arrays: Mapping[str, ArrayCard]) -> str:
    """The note that lists the parts of a run for `read_run`: tables with their columns, and arrays with their axes."""
    parts: list[str] = []
    for name, count in tables.counts.items():
        outer = name.rpartition(".")[0]
        above = tables.columns(outer) if outer else []
        own = [column for column in tables.columns(name) if column not in above]
        inherited = [f"those of {outer}"] if above else []
        parts.append(f"{name} ({plural(count, 'row')}: {', '.join([*inherited, *own])})")
    parts += [f"{name} ({' × '.join(card.axes)})" for name, card in arrays.items()]
    return f"Parts for read_run: {', '.join([*parts, *EVERY_RUN])}."


EVERY_RUN = ("result", "record")
"""Parts that every run has: the fields of its result that are no tables, and its record; one fact a row."""


def facts_of(data: Any, path: str = "") -> list[TableRow]:
    """The leaves of nested data, one a row, under dotted names; lists are leaves."""
    if isinstance(data, dict):
        return [row for name, part in data.items() for row in facts_of(part, f"{path}.{name}" if path else name)]
    return [{"field": path, "value": _cell(data)}]


def filter_facts(rows: Sequence[TableRow], where: Mapping[str, Any]) -> list[TableRow]:
    """The facts whose columns have the values that are asked for.

    Raises:
        InvalidRequest: A column does not exist.
    """
    _require(where, FACT_COLUMNS)
    return [row for row in rows if all(_matches(row[name], wanted) for name, wanted in where.items())]


FACT_COLUMNS = ["field", "value"]


def as_table(rows: Sequence[TableRow], columns: Sequence[str], asked: Sequence[str] | None = None) -> Table:
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


def _number(wanted: Any) -> int | float | None:
    """A number, which may be given as text; None for anything else."""
    if isinstance(wanted, str):
        try:
            wanted = int(wanted) if wanted.lstrip("-").isdecimal() else float(wanted)
        except ValueError:
            return None
    return wanted if isinstance(wanted, float) or (isinstance(wanted, int) and abs(wanted) < _LARGEST) else None


def _require(asked: Mapping[str, Any] | Sequence[str], names: Sequence[str]) -> None:
    for name in asked:
        if name not in names:
            raise InvalidRequest(f"there is no column {shown(name)}: the columns are {', '.join(names)}.")
