"""Typed columns, and the one way in which text, structured content and files show them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from nnterp_mcp.contract import TableAnswer
from nnterp_mcp.table import Cell, Column, Kind, Table, cell_text, tabulate


def test_table() -> None:
    content = Table(
        columns=["layer", "top", "p, rank"], rows=[[0, [["a", 0.5], ["b", 0.25]], ["<1e-6", 3]], [1, None, []]]
    )

    assert content.text() == "layer | top | p, rank\n0 | a 0.5, b 0.25 | <1e-6 3\n1 | – | "
    assert cell_text(1.23456) == "1.23"


@pytest.mark.parametrize(
    ("kind", "value", "cell", "text"),
    [
        (Kind.PLAIN, 1.23456, 1.23456, "1.23"),
        (Kind.PLAIN, True, True, "true"),
        (Kind.PLAIN, "two words", "two words", "two words"),
        (Kind.TOKEN, " Paris\n", " Paris\n", '" Paris\\n"'),
        (Kind.TOKEN, " " * 40, " " * 23 + "…", '"' + " " * 23 + '…"'),
        (Kind.TEXT, "a" * 40, "a" * 40, '"' + "a" * 40 + '"'),
        (Kind.EITHER, " Rome", " Rome", '" Rome"'),
        (Kind.EITHER, [" Rome", " Paris"], [" Rome", " Paris"], '" Rome" / " Paris"'),
        (Kind.TOKENS, [(" a", -0.51234)], [[" a", -0.51234]], '" a" -0.512'),
        (Kind.TOKENS, [[" q", " k", 0.5]], [[" q", " k", 0.5]], '" q" " k" 0.5'),
        (Kind.TOP, [(" a", 0.5), (" b", 1e-9)], [[" a", 0.5], [" b", "<1e-6"]], '" a" 0.5, " b" <1e-6'),
        (Kind.TOP, (" a", 0.5), [" a", 0.5], '" a" 0.5'),
        (Kind.PROBABILITY, 1e-9, "<1e-6", "<1e-6"),
        (Kind.RANKED, (1e-9, 400), ["<1e-6", 400], "<1e-6 400"),
        (Kind.HUNDREDTHS, 0.12345, 0.12, "0.12"),
        (Kind.BRIEF, 12.3456, 12.35, "12.3"),
        (Kind.BRIEF, 0.012345, 0.012, "0.012"),
        (Kind.PERCENT, 0.12345, "12.3 %", "12.3 %"),
        (Kind.RAW, "two words", "two words", '"two words"'),
        (Kind.RAW, ["word", "3"], ["word", "3"], 'word "3"'),
    ],
)
def test_a_kind_makes_one_cell_for_both_channels_and_its_text(kind: Kind, value: Any, cell: Cell, text: str) -> None:
    assert kind.cell(value) == cell
    assert kind.text(kind.cell(value)) == text


@pytest.mark.parametrize("kind", Kind)
def test_nothing_is_a_dash(kind: Kind) -> None:
    assert kind.cell(None) is None
    assert kind.text(None) == "–"


COLUMNS: list[Column[tuple[int, str]]] = [
    Column("layer", lambda row: row[0]),
    Column("token", lambda row: row[1], Kind.TOKEN),
    Column("hidden", lambda row: 1 / 0, shown=False),
]


def test_a_table_has_the_columns_that_are_shown() -> None:
    table = tabulate(COLUMNS, [(0, " a"), (1, ' "b"')])

    assert (table.columns, table.rows) == (["layer", "token"], [[0, " a"], [1, ' "b"']])
    assert table.text() == 'layer | token\n0 | " a"\n1 | " \\"b\\""'
    assert [*csv.reader(io.StringIO(table.csv()))] == [["layer", "token"], ["0", " a"], ["1", ' "b"']]
    assert [json.loads(line) for line in table.json_lines().splitlines()] == [
        {"layer": 0, "token": " a"},
        {"layer": 1, "token": ' "b"'},
    ]


def test_text_is_the_same_on_both_sides_of_the_pipe() -> None:
    answer = TableAnswer(
        finding="found", notes=["note"], model="tiny", total=1, truncated=False, table=tabulate(COLUMNS, [(0, " a")])
    )
    received = TableAnswer.model_validate_json(json.dumps(answer.model_dump(mode="json")))

    assert received.text() == answer.text() == 'found\nlayer | token\n0 | " a"\nnote'
    assert answer.structured() == {
        "finding": "found",
        "notes": ["note"],
        "model": "tiny",
        "total": 1,
        "truncated": False,
        "table": {"columns": ["layer", "token"], "rows": [[0, " a"]]},
    }
