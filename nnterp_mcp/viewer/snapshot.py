"""A run as data that a page can carry: its answer, and all its parts as tables."""

from __future__ import annotations

import math
from typing import Any

from nnterp_mcp.formatting import escaped_data, finite, plural, rounded
from nnterp_mcp.pool.reading import read_answer
from nnterp_mcp.runs.records import ArrayCard, RunRecord
from nnterp_mcp.runs.results import read_tables
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.tables import FACT_COLUMNS, as_table, columns_of_array, facts_of, read_array
from nnterp_mcp.table import Table
from nnterp_mcp.toolset import specs

LARGEST_ARRAYS = 1_000_000
"""Numbers of the arrays that a page holds: about 10 MB of text."""

_DIGITS = 6
"""Significant digits of a number in a page; it is to be looked at."""


def snapshot(store: RunStore, run_id: str) -> dict[str, Any]:
    """A run's answer under `answer` and its parts under `parts`; arrays that are too large are named in the notes.

    Raises:
        InvalidRequest: There is no such run, or it has no result.
    """
    record = store.read(run_id)
    answer = read_answer(store, record)
    arrays, left = _chosen(record)
    if left:
        answer.notes.insert(-1, f"Too large for this page, and left out: {', '.join(left)}; read_run has them.")
    parts = _tables(store, record) | {name: _array(store, record.id, name, card) for name, card in arrays.items()}
    tables = {name: short(part.model_dump(mode="json", exclude={"kinds"})) for name, part in parts.items()}
    return {"answer": escaped_data(short(answer.structured())), "parts": escaped_data(tables)}


def _tables(store: RunStore, record: RunRecord) -> dict[str, Table]:
    stored = read_tables(store, record, specs())
    tables = {name: as_table(stored.page(name, {})[0], stored.columns(name)) for name in stored.counts}
    facts = {"result": stored.facts["result"], "record": record.model_dump(mode="json")}
    return tables | {name: as_table(facts_of(data), FACT_COLUMNS) for name, data in facts.items()}


def _chosen(record: RunRecord) -> tuple[dict[str, ArrayCard], list[str]]:
    """The arrays that fit, in their order, and what is left out, with its size."""
    kept: dict[str, ArrayCard] = {}
    left: list[str] = []
    room = LARGEST_ARRAYS
    for name, card in record.arrays.items():
        count = math.prod(card.shape)
        if count <= room:
            kept[name] = card
            room -= count
        else:
            left.append(f"{name} ({plural(count, 'number')})")
    return kept, left


def _array(store: RunStore, run_id: str, name: str, card: ArrayCard) -> Table:
    rows, _ = read_array(store, run_id, name, card, {}, 0, math.prod(card.shape))
    return as_table(rows, columns_of_array(name, card))


def short(value: Any) -> Any:
    """Plain data for JSON, its numbers cut to `_DIGITS` digits; those that are not finite become null."""
    return finite(rounded(value, _DIGITS))
