"""Results and arrays as tables: every row once whatever the page, and the rows that were asked for, no others."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from pydantic import BaseModel

from nnterp_mcp.contract import Result
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.tables import (
    FACT_COLUMNS,
    ResultTables,
    as_table,
    columns_of_array,
    encode_tables,
    facts_of,
    filter_facts,
    read_array,
)
from nnterp_mcp.toolset.read_run.answer import digest
from nnterp_mcp.toolset.read_run.result import ReadRunResult
from tests.recorded_runs import PARAMS, opened


class Layer(BaseModel):
    layer: int
    top: list[tuple[str, float]]


class Reading(BaseModel):
    token: str
    leads_from: int | None
    layers: list[Layer]


class Readings(Result):
    model: str
    categories: dict[str, list[str]]
    readings: list[Reading]


class Row(BaseModel):
    layer: int
    token: str
    p: float | None
    top: list[tuple[str, float]]


class Rows(Result):
    rows: list[Row]


COLUMNS = list(Row.model_fields)


TOP = st.lists(st.tuples(st.text(max_size=3), st.floats(0, 1)), max_size=3)
LAYER = st.builds(Layer, layer=st.integers(0, 4), top=TOP)
READING = st.builds(
    Reading, token=st.text(max_size=3), leads_from=st.none() | st.integers(0, 4), layers=st.lists(LAYER, max_size=4)
)
RESULT = st.builds(
    Readings, model=st.just("tiny"), categories=st.just({"a": ["x"]}), readings=st.lists(READING, max_size=5)
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "layer": st.integers(0, 3),
            "token": st.text("ab ", max_size=3),
            "p": st.none() | st.floats(0, 1),
            "top": st.lists(st.tuples(st.text("ab", max_size=2), st.floats(0, 1)).map(list), max_size=3),
        }
    ),
    max_size=30,
)


@given(RESULT)
def test_every_item_is_a_row_beside_what_it_stands_in(result: Readings) -> None:
    stored = ResultTables(encode_tables(result, {}))
    tables = {name: stored.page(name, {})[0] for name in stored.counts}
    layers = [(reading, layer) for reading in result.readings for layer in reading.layers]

    assert set(tables) == ({"readings"} if result.readings else set()) | ({"readings.layers"} if layers else set())
    assert [(row["token"], row["leads_from"]) for row in tables.get("readings", [])] == [
        (reading.token, reading.leads_from) for reading in result.readings
    ]
    assert tables.get("readings.layers", []) == [
        {
            "token": reading.token,
            "leads_from": reading.leads_from,
            "layer": layer.layer,
            "top": [list(pair) for pair in layer.top],
        }
        for reading, layer in layers
    ]


def stored(rows: list[dict[str, Any]]) -> ResultTables:
    return ResultTables(encode_tables(Rows.model_validate({"rows": rows}), {"said": "so"}))


@given(ROWS.filter(bool), st.integers(1, 7))
def test_the_pages_hold_every_row_once(rows: list[dict[str, Any]], limit: int) -> None:
    tables = stored(rows)
    pages = [tables.page("rows", {}, offset, limit) for offset in range(0, len(rows), limit)]

    assert [row for page, _ in pages for row in page] == rows
    assert {total for _, total in pages} == {tables.counts["rows"]} == {len(rows)}
    assert tables.columns("rows") == COLUMNS
    assert tables.facts == {"said": "so", "result": {}}


@given(ROWS.filter(bool), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.text("ab ", max_size=2))
def test_the_rows_that_are_asked_for_and_no_others(rows: list[dict[str, Any]], layers: list[int], part: str) -> None:
    tables = stored(rows)

    def asked(**where: Any) -> list[dict[str, Any]]:
        found, total = tables.page("rows", where)
        assert total == len(found)
        return found

    expected = [row for row in rows if row["layer"] in layers]
    assert asked(layer=layers) == expected
    assert asked(layer=[str(layer) for layer in layers]) == expected, "numbers may come as text"
    assert asked(layer=layers, token=part) == [row for row in expected if part in row["token"]]
    assert asked(top=part) == [row for row in rows if any(part in text for text, _ in row["top"])]
    assert asked(p=None) == [row for row in rows if row["p"] is None]
    for row in rows:
        assert row in asked(p=row["p"])
        assert row in asked(top=[name for name, _ in row["top"]] or [""]) or not row["top"]
    assert asked() == rows


def test_columns_around_a_table_choose_its_rows_too() -> None:
    layers = [Layer(layer=layer, top=[('"', 0.5), ("a,b", 1e-7)]) for layer in range(3)]
    readings = [Reading(token=f"t{number}", leads_from=number or None, layers=layers) for number in range(4)]
    tables = ResultTables(encode_tables(Readings(model="m", categories={}, readings=readings), {}))

    found, total = tables.page("readings.layers", {"token": ["t1", "t3"], "layer": 2})
    assert total == 2
    assert [(row["token"], row["leads_from"], row["layer"]) for row in found] == [("t1", 1, 2), ("t3", 3, 2)]
    assert tables.page("readings.layers", {"leads_from": None}, limit=1)[1] == 3
    for part in ('"', "a,b", ",", "1e-07"):
        assert tables.page("readings.layers", {"top": part})[1] == (0 if part == "" else 12)
    assert tables.page("readings.layers", {"top": '",'})[1] == 0, "a piece of JSON is no piece of a cell"


def test_what_is_no_file_of_tables_is_refused() -> None:
    content = encode_tables(Readings(model="m", categories={}, readings=[]), {})
    assert ResultTables(content).counts == {}
    for broken in (b"", content[:20], b"x" * 100, content.replace(b"format", b"former")):
        with pytest.raises(ValueError, match=r"Expecting value|another version|Unterminated"):
            ResultTables(broken)


@pytest.mark.parametrize("name", ["layers", "", "tokén", "readings.layers"])
def test_a_column_that_does_not_exist_is_told_with_those_that_do(name: str) -> None:
    tables = stored([{"layer": 1, "token": "a", "p": None, "top": []}])
    message = "there is no column '.*': the columns are layer, token, p, top"
    with pytest.raises(InvalidRequest, match=message):
        tables.page("rows", {name: 1})
    with pytest.raises(InvalidRequest, match=message):
        as_table([], COLUMNS, [name])
    with pytest.raises(InvalidRequest, match="the columns are field, value"):
        filter_facts([], {name: 1})


@given(PARAMS)
def test_facts_are_the_leaves_and_each_has_a_name(data: dict[str, Any]) -> None:
    def leaves(value: Any) -> int:
        return sum(map(leaves, value.values())) if isinstance(value, dict) else 1

    facts = filter_facts(facts_of(data), {})
    assert all(list(fact) == FACT_COLUMNS for fact in facts)
    assert len(facts) == leaves(data)
    for name, value in data.items():
        if isinstance(value, str | int | float | bool | None):
            assert {"field": name, "value": value} in facts


SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)


@settings(max_examples=40)
@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(-9, 9, width=32)), st.integers(1, 9), st.data())
def test_the_pages_of_an_array_hold_every_number_once(array: np.ndarray, limit: int, data: st.DataObject) -> None:
    axes = {f"axis{place}": [10 * place + label for label in range(side)] for place, side in enumerate(array.shape)}
    wanted = {
        axis: data.draw(st.lists(st.sampled_from(labels), min_size=1, max_size=3), label=axis)
        for axis, labels in axes.items()
        if data.draw(st.booleans())
    }
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        run_id = opened(store).id
        card = store.write_array(run_id, "pattern", array, axes)
        rows, total = read_array(store, run_id, "pattern", card, wanted, 0, limit)
        while len(rows) < total:
            page, same = read_array(store, run_id, "pattern", card, wanted, len(rows), limit)
            assert same == total
            assert 0 < len(page) <= limit
            rows += page

    *outer, numbers_of = columns_of_array("pattern", card)
    places = [
        [place for place, label in enumerate(labels) if axis not in wanted or label in wanted[axis]]
        for axis, labels in axes.items()
    ]
    chosen = array[np.ix_(*places)]
    assert total == len(rows) == chosen.size // chosen.shape[-1]
    assert [row[numbers_of] for row in rows] == chosen.reshape(total, -1).tolist()
    labels = np.array(
        np.meshgrid(*([axes[axis][at] for at in on] for axis, on in zip(outer, places, strict=False)), indexing="ij")
    )
    assert [[row[axis] for axis in outer] for row in rows] == labels.reshape(len(outer), total).T.tolist()


def test_an_axis_that_does_not_exist_is_told(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = opened(store).id
    card = store.write_array(run_id, "pattern", np.zeros((2, 3)), {"layer": [0, 1], "head": [0, 1, 2]})

    with pytest.raises(InvalidRequest, match="there is no column 'query': the columns are layer, head"):
        read_array(store, run_id, "pattern", card, {"query": 1}, 0, 5)
    assert read_array(store, run_id, "pattern", card, {"head": 7}, 0, 5) == ([], 0)


def page(rows: list[dict[str, Any]], form: str, total: int | None = None) -> ReadRunResult:
    return ReadRunResult(
        run_id="steer-abcdef",
        part="runs",
        table=as_table(rows, COLUMNS if "p" in rows[0] else list(rows[0])),
        offset=0,
        total=len(rows) if total is None else total,
        format=form,  # pyright: ignore[reportArgumentType] - parametrized
    )


@given(ROWS.filter(bool))
def test_json_gives_each_row_with_every_digit(rows: list[dict[str, Any]]) -> None:
    answer = digest(page(rows, "json"))
    _, *lines = answer.text().split("\n")

    assert [json.loads(line) for line in lines] == rows
    assert answer.exact


@given(ROWS.filter(bool))
def test_csv_gives_each_row_with_every_digit(rows: list[dict[str, Any]]) -> None:
    _, content = digest(page(rows, "csv")).text().split("\n", 1)
    read = list(csv.DictReader(io.StringIO(content)))

    assert [int(row["layer"]) for row in read] == [row["layer"] for row in rows]
    assert [row["token"] for row in read] == [row["token"] for row in rows]
    assert [float(row["p"]) if row["p"] else None for row in read] == [row["p"] for row in rows]
    assert [json.loads(row["top"]) for row in read] == [row["top"] for row in rows]


@given(ROWS.filter(bool))
def test_a_table_says_what_is_the_same_once_and_the_rest_row_by_row(rows: list[dict[str, Any]]) -> None:
    answer = digest(page(rows, "table"))

    assert [answer.same | dict(zip(answer.table.columns, row, strict=True)) for row in answer.table.rows] == rows
    for name in answer.same:
        assert len(rows) > 1
        assert all(row[name] == rows[0][name] for row in rows)


def test_what_a_page_leaves_out_is_said() -> None:
    long = [{"layer": layer, "text": "x" * 500, "numbers": [layer / 7] * 500} for layer in range(20)]
    answer = digest(page(long, "table", total=90))
    said = answer.text()

    assert answer.truncated
    assert "70 more rows: offset=20." in said
    assert "Cells that end in … are cut: format='json' shows them whole, fewer rows show more of each." in said
    assert "… 492 more" in said
    assert not digest(page(long, "json")).truncated
    assert "… 372 more" in digest(page(long[:1], "table")).text()
