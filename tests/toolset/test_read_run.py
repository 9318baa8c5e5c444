"""Runs on real servers: answers that come later, what is read of them, and what is left when server or client goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.runs.store import RunStore
from tests.serving import Caller, http, raw, stdio, text, until

LONG = {"prompts": ["a b"] * 1000}
"""A call of some seconds where a batch holds one prompt."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def store(data: Path) -> RunStore:
    return RunStore(data / "runs")


@pytest.fixture(scope="module")
def client(tiny: Callable[..., Path], data: Path) -> Generator[Caller]:
    """A client of an impatient server: calls answer within a third of a second and go on."""
    with stdio(reply_within=0.3, batch_tokens=1, data=data) as caller:
        load(caller, tiny)
        yield caller


def load(client: Caller, tiny: Callable[..., Path]) -> None:
    folder = str(tiny("llama"))
    until(lambda: "still loading" not in text(client.call("load_model", model=folder)))


def lens(client: Caller, **arguments: Any) -> dict[str, Any]:
    result = client.call("logit_lens", **({"prompts": ["a b", "c d"], "targets": {"x": "a"}} | arguments))
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return result.structured_content


def read(client: Caller, run_id: str | list[str], **arguments: Any) -> dict[str, Any]:
    result = client.call("read_run", run_id=run_id, **arguments)
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return result.structured_content


@pytest.fixture(scope="module")
def run(client: Caller) -> str:
    begun: str = lens(client)["run_id"]
    until(lambda: "state" not in read(client, begun))
    return begun


def refusal(client: Caller, run_id: str | list[str], **arguments: Any) -> str:
    result = client.call("read_run", run_id=run_id, **arguments)
    assert result.is_error, text(result)
    return text(result)


class TestLate:
    def test_an_answer_that_comes_later_is_the_one_that_the_tool_would_have_given(
        self, client: Caller, tiny: Callable[..., Path], tmp_path: Path
    ) -> None:
        prompts = [f"a b {number}" for number in range(150)]
        begun = time.monotonic()
        late = lens(client, prompts=prompts)
        assert time.monotonic() - begun < 10
        assert late["state"] == "running"
        assert late["run_id"] in late["finding"] or late["finding"].startswith("logit_lens on tiny-llama is running")
        waited = until(lambda: "state" not in (answer := read(client, late["run_id"])) and answer)

        with stdio(batch_tokens=1, data=tmp_path) as patient:
            load(patient, tiny)
            at_once = lens(patient, prompts=prompts)
        assert waited["run_id"] == late["run_id"]
        assert waited["notes"][-1].startswith("Parts for read_run: ")
        assert {**waited, "run_id": None} == {**at_once, "run_id": None}

    def test_who_does_not_want_to_wait_is_told_at_once(self, client: Caller) -> None:
        late = lens(client, **LONG)
        begun = time.monotonic()
        again = read(client, late["run_id"], wait_seconds=0)
        record = read(client, late["run_id"], part="record", where={"field": "state"})
        assert time.monotonic() - begun < 1
        assert again["state"] == "running"
        assert record["table"]["rows"] == [["state", "running"]]
        assert client.call("cancel_run", run_id=late["run_id"]).structured_content["state"] == "cancelled"

    def test_waiting_for_several_ends_with_the_first_of_them(self, client: Caller) -> None:
        first, second = (lens(client, **LONG)["run_id"] for _ in range(2))
        listed = read(client, [first, second], wait_seconds=0)
        assert listed["finding"] == "0 of 2 runs ended."
        cancelled = client.begin("read_run", run_id=[first, second])
        client.call("cancel_run", run_id=first)
        listed = cancelled.result(60).structured_content
        if "1 of 2" not in listed["finding"]:  # the wait ended by itself before the run did
            listed = read(client, [first, second])
        assert listed["finding"] == f"1 of 2 runs ended: {first}."
        table = listed["table"]
        assert [row[table["columns"].index("state")] for row in table["rows"]] == ["cancelled", "running"]
        assert "Name one run" in refusal(client, [first, second], part="record")
        client.call("cancel_run", run_id=second)

    def test_progress_is_told_while_one_waits(self, client: Caller) -> None:
        late = lens(client, **LONG)
        said: list[str | None] = []
        reading = client.begin("read_run", lambda *progress: said.append(progress[2]), run_id=late["run_id"])
        until(lambda: said)
        assert "of 1000 prompts" in (said[0] or "")
        assert reading.result(60).structured_content["state"] == "running"
        client.call("cancel_run", run_id=late["run_id"])


def test_rows_as_json_hold_null_for_what_is_no_number_and_fit_a_message() -> None:
    from nnterp_mcp.table import Table
    from nnterp_mcp.toolset.read_run import SPEC
    from nnterp_mcp.toolset.read_run.result import ReadRunResult

    rows = [[float("nan"), [float("inf"), 1.5]], *([0.1, [0.1] * 5000] for _ in range(100))]
    table = Table(columns=["a", "b"], rows=rows)
    answer = SPEC.digest(
        ReadRunResult(run_id="logit_lens-aaaaaa", part="x", table=table, offset=10, total=500, format="json")
    )
    lines = [line for line in answer.text().splitlines() if line.startswith("{")]
    count = len(lines)

    assert [json.loads(line, parse_constant=pytest.fail) for line in lines[:1]] == [{"a": None, "b": [None, 1.5]}]
    assert 1 < count < 100
    assert len(json.dumps(lines)) < 500_000
    assert answer.truncated
    assert answer.notes == [f"{490 - count} more rows: offset={10 + count}."]


class TestParts:
    def test_the_answer_names_the_parts(self, client: Caller, run: str) -> None:
        assert read(client, run)["notes"][-1] == (
            "Parts for read_run: readings (2 rows: prompt, text, position, token, leads_from), "
            "readings.layers (8 rows: those of readings, layer, top, entropy, kl, targets), result, record."
        )

    @pytest.mark.parametrize("form", ["table", "csv", "json"])
    @pytest.mark.parametrize("limit", [1, 3, 500])
    def test_the_pages_hold_every_row_once(
        self, limit: int, form: str, client: Caller, run: str, store: RunStore
    ) -> None:
        rows: list[dict[str, Any]] = []
        while True:
            page = read(client, run, part="readings.layers", limit=limit, offset=len(rows), format=form)
            content = page["table"]
            rows += [page["same"] | dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
            assert page["truncated"] == (len(rows) < page["total"])
            if not page["truncated"]:
                break
        result = json.loads(store.read_result(store.read(run)))
        whole = [(reading["prompt"], layer) for reading in result["readings"] for layer in reading["layers"]]

        assert [(row["prompt"], row["layer"]) for row in rows] == [(prompt, layer["layer"]) for prompt, layer in whole]
        exact = 0 if form != "table" else 5e-3
        for row, (_, layer) in zip(rows, whole, strict=True):
            assert row["entropy"] == pytest.approx(layer["entropy"], rel=exact)

    def test_rows_and_columns_that_are_asked_for(self, client: Caller, run: str) -> None:
        page = read(client, run, part="readings.layers", where={"layer": [1, 2], "text": "c"}, columns=["layer", "kl"])
        assert page["table"]["columns"] == ["layer", "kl"]
        assert [row[0] for row in page["table"]["rows"]] == [1, 2]
        assert page["total"] == 2

    def test_the_record_holds_what_the_run_depends_on(self, client: Caller, run: str, store: RunStore) -> None:
        page = read(client, run, part="record", limit=500, format="json")
        facts = dict(page["table"]["rows"])
        record = store.read(run)

        assert facts["id"] == run
        assert facts["params.prompts"] == ["a b", "c d"]
        assert facts["state"] == "done"
        assert facts["partial"] is False
        assert record.environment is not None
        assert facts["environment.fingerprint"] == record.environment.fingerprint
        assert facts["environment.files.model.safetensors.sha256"] == (
            record.environment.files["model.safetensors"].sha256
        )
        assert facts["compute_seconds"] == record.compute_seconds, "every digit"

    def test_what_is_no_table_is_read_too(self, client: Caller, run: str) -> None:
        facts = dict(read(client, run, part="result")["table"]["rows"])
        assert facts["model"] == "tiny-llama"
        assert "a" in facts["categories.x"]

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (
                {"part": "layers"},
                "has no part 'layers': its parts are answer, readings, readings.layers, result, record.",
            ),
            (
                {"part": "readings", "where": {"layer": 1}},
                "there is no column 'layer': the columns are prompt, text, position, token, leads_from.",
            ),
            ({"part": "readings", "columns": ["p"]}, "there is no column 'p': the columns are prompt, text, "),
            ({"offset": 20}, "where, columns and offset choose from the rows of a part, and part='answer' has none."),
            ({"format": "xml"}, "format: input should be 'table', 'csv', 'json' or 'picture', not 'xml'."),
        ],
    )
    def test_what_does_not_exist_is_told_with_what_does(
        self, arguments: dict[str, Any], expected: str, client: Caller, run: str
    ) -> None:
        assert expected in refusal(client, run, **arguments)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "steer", "", "logit_lens-K3F7QA", "x/../y-abcdef"])
    def test_a_path_is_no_run(self, name: str, client: Caller) -> None:
        assert "a run id looks like 'logit_lens-k3f7qa', so not " in refusal(client, name)

    def test_a_run_that_never_was(self, client: Caller) -> None:
        assert refusal(client, "steer-abcdef") == (
            "invalid_request: there is no run 'steer-abcdef': it never was, or was deleted to make room.\n"
            "session lists the latest runs."
        )

    def test_a_damaged_result_is_told_and_its_record_is_read(self, client: Caller, store: RunStore) -> None:
        run = lens(client)["run_id"]
        (store.folder / run / "result.json").write_text("{}")

        assert f"the result of {run} is damaged." in refusal(client, run)
        assert read(client, run, part="record", where={"field": "tool"})["table"]["rows"] == [["tool", "logit_lens"]]

    def test_a_default_page_is_small(self, client: Caller, run: str, count_tokens: Callable[[object], int]) -> None:
        for part in ("answer", "readings", "readings.layers", "result", "record"):
            result = client.call("read_run", run_id=run, part=part)
            print(f"{part}: text {count_tokens(text(result))}, structured {count_tokens(result.structured_content)}")
            assert count_tokens(text(result)) <= 1000
            assert count_tokens(result.structured_content) <= 1000

    def test_the_wording(self, client: Caller, run: str, snapshot: SnapshotAssertion) -> None:
        columns = ["prompt", "layer", "token"]  # no numbers that depend on a machine
        said = [
            text(client.call("read_run", run_id=run, **arguments)).replace(run, "logit_lens-xxxxxx")
            for arguments in (
                {"part": "readings.layers", "columns": columns, "limit": 2},
                {"part": "readings.layers", "columns": columns, "limit": 2, "format": "csv"},
                {"part": "readings.layers", "columns": columns, "limit": 2, "format": "json"},
                {"part": "readings", "where": {"prompt": 7}},
                {"part": "readings", "offset": 7},
                {"part": "record", "where": {"field": ["params", "state", "partial"]}},
            )
        ]
        assert "\n\n".join(said) == snapshot


class TestArrays:
    def test_patterns_are_read_by_axis(self, client: Caller, store: RunStore) -> None:
        answer = client.call("attention_probs", prompts="a b c d", layers=[1, 3]).structured_content
        assert answer is not None
        run = answer["run_id"]
        until(lambda: "state" not in read(client, run))
        arrays = store.read(run).arrays
        name, card = next(iter(arrays.items()))
        assert f"{name} ({' × '.join(card.axes)})" in read(client, run)["notes"][-1]
        axis, labels = next(iter(card.axes.items()))
        page = read(client, run, part=name, where={axis: labels[-1]}, limit=500, format="json")
        whole = next(iter(load_file(store.array_path(run, name)).values()))[-1]

        rows = [row[-1] for row in page["table"]["rows"]]
        assert rows == whole.reshape(-1, whole.shape[-1]).tolist()
        assert "there is no column 'x': the columns are " in refusal(client, run, part=name, where={"x": 1})


class TestAfterwards:
    @pytest.mark.slow
    def test_a_run_is_read_after_its_server_has_ended(self, tiny: Callable[..., Path], tmp_path: Path) -> None:
        with stdio(data=tmp_path) as first:
            load(first, tiny)
            answer = lens(first)
        with stdio(data=tmp_path) as second:
            again = read(second, answer["run_id"])
            rows = read(second, answer["run_id"], part="readings.layers")
            listed = second.call("session").structured_content["runs"]["rows"]

        assert again["notes"][-1].startswith("Parts for read_run: ")
        assert again == answer
        assert rows["total"] == 8
        assert [row[:3] for row in listed] == [[answer["run_id"], "tiny-llama", "done"]]

    @pytest.mark.slow
    def test_a_run_whose_server_was_killed_is_interrupted(self, tiny: Callable[..., Path], tmp_path: Path) -> None:
        with http(reply_within=0.3, batch_tokens=1, data=tmp_path) as server, server.client() as client:
            load(client, tiny)
            run = lens(client, **LONG)["run_id"]
            server.process.kill()
            server.process.wait(10)
        with stdio(data=tmp_path) as second:
            said = refusal(second, run)
            state = read(second, run, part="record", where={"field": "state"})

        assert f"{run} has no result: its server ended before it did." in said
        assert state["table"]["rows"] == [["state", "interrupted"]]

    def test_a_client_that_closes_standard_input_ends_its_runs_in_their_records(
        self, tiny: Callable[..., Path], tmp_path: Path
    ) -> None:
        store = RunStore(tmp_path / "runs")
        with raw(batch_tokens=1, data=tmp_path) as server:
            server.initialize()
            server.call(1, "load_model", model=str(tiny("llama")))
            assert not server.answer(1)["result"]["isError"]
            server.call(2, "logit_lens", **LONG)
            server.call(3, "logit_lens", **LONG)
            until(lambda: len(store.latest(5)) == 2)
            time.sleep(0.3)
            assert server.process.stdin is not None
            server.process.stdin.close()
            server.process.wait(20)

        records = [store.read(record.id) for record in store.latest(5)]
        assert len(records) == 2
        assert {record.state for record in records} <= {"cancelled", "failed"}
        assert all(record.error is not None and record.ended is not None for record in records)

    def test_a_call_that_its_client_cancels_keeps_what_it_had(self, tiny: Callable[..., Path], tmp_path: Path) -> None:
        said: list[float] = []
        store = RunStore(tmp_path / "runs")
        # A server that is in no hurry: an impatient one may answer before the first progress, and the call is over.
        with stdio(batch_tokens=1, data=tmp_path) as client:
            load(client, tiny)
            call = client.begin("logit_lens", lambda *progress: said.append(progress[0]), **LONG)
            until(lambda: said)
            call.cancel()
            run = client.call("session").structured_content["runs"]["rows"][0][0]
            until(lambda: store.read(run).state != "running", 10)

            record = store.read(run)
            assert record.state == "cancelled"
            assert record.error is not None
            assert record.error.message.startswith("the client cancelled the call")
            assert record.partial
            assert 0 < read(client, run, part="readings", limit=1)["total"] < 1000

    def test_tools_that_are_no_experiments_have_no_run(self, client: Caller, store: RunStore) -> None:
        before = {record.id for record in store.latest(1000)}
        for tool, arguments in {"tokenize": {"prompts": "a"}, "inspect_model": {}, "session": {}}.items():
            result = client.call(tool, **arguments)
            assert not result.is_error, text(result)
            assert "run_id" not in result.structured_content
            assert "run_id:" not in text(result)
        assert {record.id for record in store.latest(1000)} == before
