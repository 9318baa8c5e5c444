"""A run as data that a page can carry: its answer, its figure, and of its parts as tables as much as fits."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from nnterp_mcp.formatting import escaped_data, finite, plural, rounded
from nnterp_mcp.pool.reading import read_answer
from nnterp_mcp.runs import figures
from nnterp_mcp.runs.records import ArrayCard, RunRecord
from nnterp_mcp.runs.results import read_tables
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.tables import FACT_COLUMNS, as_table, columns_of_array, facts_of, read_array
from nnterp_mcp.table import Table
from nnterp_mcp.toolset import specs

MOST_CHARACTERS = 1_800_000
"""Characters of the parts that a page holds."""

_DIGITS = 6
"""Significant digits of a number in a page; it is to be looked at."""

_LONG = 24
"""Characters up to which a text is written wherever it stands."""

_SHORTEST = 4
"""Characters of a number in an array, at least."""


def snapshot(store: RunStore, run_id: str) -> tuple[dict[str, Any], str]:
    """A run's answer under `answer` and its parts under `parts`; and a sentence on what did not fit, empty if all did.

    Raises:
        InvalidRequest: There is no such run, or it has no result.
    """
    record = store.read(run_id)
    answer = read_answer(store, record)
    parts: dict[str, Any] = {}
    left: list[str] = []
    room = MOST_CHARACTERS
    for name, content in _tables(store, record):
        size = _size(content)
        if size > room:
            content["rows"], count = (
                content["rows"][-max(1, len(content["rows"]) * room // size) :],
                len(content["rows"]),
            )
            left.append(f"{name} (the last {len(content['rows'])} of {plural(count, 'row')} are here)")
            size = _size(content)
        parts[name] = content
        room = max(0, room - size)
    for name, card in sorted(record.arrays.items(), key=lambda item: math.prod(item[1].shape)):
        count = math.prod(card.shape)
        content = _array(store, record.id, name, card) if count * _SHORTEST < room else None
        if content is None or _size(content) > room:
            left.append(f"{name} ({plural(count, 'number')})")
        else:
            parts[name] = content
            room -= _size(content)
    said = f"Too large for this page, and left out: {', '.join(left)}; read_run has them." if left else ""
    page = escaped_data(short(answer.structured()))
    page["notes"] = [*([said.removesuffix("; read_run has them.") + "."] if left else []), *page.get("notes", [])]
    return {"answer": page, "parts": parts}, said


def _tables(store: RunStore, record: RunRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figure, the facts, then the tables with few rows before those with many."""
    stored = read_tables(store, record, specs())
    facts = {"result": stored.facts["result"], "record": record.model_dump(mode="json")}
    rows = {figures.DATA: ([{figures.DATA: figures.figure_text(store, record, specs())}], [figures.DATA])}
    rows |= {name: (facts_of(data), FACT_COLUMNS) for name, data in facts.items()}
    for name, (content, columns) in rows.items():
        yield name, _plain(as_table(content, columns))
    for name in sorted(stored.counts, key=stored.counts.__getitem__):
        yield name, _plain(as_table(stored.page(name, {})[0], stored.columns(name)))


def _array(store: RunStore, run_id: str, name: str, card: ArrayCard) -> dict[str, Any]:
    rows, _ = read_array(store, run_id, name, card, {}, 0, math.prod(card.shape))
    return _plain(as_table(rows, columns_of_array(name, card)))


def _plain(table: Table) -> dict[str, Any]:
    """A table as data; a long text that several of its cells have, such as a prompt, stands in it once."""
    content = escaped_data(short(table.model_dump(mode="json", exclude={"kinds"})))
    counts = Counter(cell for row in content["rows"] for cell in row if isinstance(cell, str) and len(cell) > _LONG)
    places = {text: place for place, text in enumerate(text for text, count in counts.items() if count > 1)}
    rows = [
        [{"text": places[cell]} if isinstance(cell, str) and cell in places else cell for cell in row]
        for row in content["rows"]
    ]
    return {**content, "rows": rows, "texts": list(places)} if places else content


def _size(content: Any) -> int:
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def short(value: Any) -> Any:
    """Plain data for JSON, its numbers cut to `_DIGITS` digits; those that are not finite become null."""
    return finite(rounded(value, _DIGITS))
