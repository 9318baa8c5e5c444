"""A run as data for a page, beside what `read_run` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.viewer import snapshot as module
from nnterp_mcp.viewer.snapshot import short, snapshot
from tests.recorded import EXAMPLES, Recorded
from tests.viewer.kept import lens_run


def read(recorded: Recorded, run_id: str, part: str) -> dict[str, Any]:
    rows: list[list[Any]] = []
    while True:
        answer = recorded.caller.call(
            "read_run", run_id=run_id, part=part, offset=len(rows), limit=500, format="json"
        ).structured_content
        rows += answer["table"]["rows"]
        if len(rows) >= answer["total"]:
            return {"columns": answer["table"]["columns"], "rows": rows}


def close(one: Any, other: Any) -> bool:
    """Whether data is equal but for digits beyond the sixth."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return other == pytest.approx(one, rel=1e-5) if isinstance(one, float) else one == other


def whole(content: dict[str, Any]) -> list[list[Any]]:
    """A table's rows with the texts that stand in it once."""
    texts = content.get("texts", [])
    return [[texts[cell["text"]] if isinstance(cell, dict) else cell for cell in row] for row in content["rows"]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_snapshot_holds_what_read_run_gives(name: str, recorded: Recorded) -> None:
    run_id = recorded.ids[name]

    data, left = snapshot(recorded.store, run_id)
    assert left == ""

    answer = recorded.caller.call("read_run", run_id=run_id).structured_content
    assert data["answer"]["finding"] == answer["finding"]
    assert data["answer"]["run_id"] == run_id
    assert {"result", "record", *recorded.store.read(run_id).arrays} <= set(data["parts"])
    for part, content in data["parts"].items():
        told = read(recorded, run_id, part)
        assert content["columns"] == told["columns"]
        assert close(told["rows"], whole(content)), part


def test_what_is_too_large_is_left_out_and_named(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = recorded.ids["states"]
    (name, *_) = recorded.store.read(run_id).arrays
    monkeypatch.setattr(module, "MOST_CHARACTERS", 7_000)

    data, left = snapshot(recorded.store, run_id)

    assert name not in data["parts"]
    assert left == data["answer"]["notes"][0][:-1] + "; read_run has them."
    assert name in left


def test_the_last_rows_of_a_long_table_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "runs")
    run = lens_run(store, [f"t{place} " for place in range(100)], layers=2)
    all_rows = snapshot(store, run.id)[0]["parts"]["readings.layers"]["rows"]
    monkeypatch.setattr(module, "MOST_CHARACTERS", len(json.dumps(snapshot(store, run.id)[0]["parts"])) - 5_000)

    data, left = snapshot(store, run.id)
    kept = data["parts"]["readings.layers"]["rows"]

    assert 0 < len(kept) < len(all_rows) == 200
    assert kept == all_rows[-len(kept) :]
    assert f"readings.layers (the last {len(kept)} of 200 rows are here)" in left


@given(st.recursive(st.floats() | st.integers() | st.text() | st.none() | st.booleans(), st.lists))
def test_shortened_data_is_json(content: Any) -> None:
    json.dumps(short(content), allow_nan=False)


def test_infinities_become_null() -> None:
    assert short([float("inf"), float("nan"), 1.23456789]) == [None, None, 1.23457]
