"""`nnterp-mcp runs`: what is on disk, listed, shown, pinned and deleted; without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnterp_mcp.cli import main
from nnterp_mcp.runs.records import RunEnvironment
from nnterp_mcp.runs.store import RunStore
from tests import recorded_runs as runs
from tests.recorded import Recorded
from tests.test_boundary import loaded_by
from tests.test_cli import run


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def command(store: RunStore, *arguments: str) -> int:
    return main(["runs", *arguments, "--runs", str(store.folder)])


def test_an_empty_store_says_so(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(store) == 0
    assert capsys.readouterr().out == f"no runs in {store.folder}\n"


def test_runs_are_listed(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    done = runs.done(store, b"x" * 3000, tool="steer")
    store.pin(done.id, True)
    gone = runs.opened(store, tool="run_prompts", owner=runs.GONE)

    assert command(store) == 0
    head, *lines = capsys.readouterr().out.splitlines()

    assert head == "run | tool | model | state | age | size | pinned"
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines}
    tool, model, state, age, size, pinned = cells[done.id]
    assert (tool, model, state, pinned) == ("steer", "tiny", "done", "pinned")
    assert age.endswith(" ago")
    assert 3.0 < float(size.removesuffix(" kB")) < 5.0
    assert cells[gone.id][2] == "interrupted"


def test_the_list_as_json_is_as_long_as_asked(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    made = {runs.done(store).id for _ in range(4)}

    assert command(store, "--json", "--limit", "3") == 0
    lines = json.loads(capsys.readouterr().out)

    assert len(lines) == 3
    assert {line["id"] for line in lines} < made
    assert all(line["bytes"] == store.size(line["id"]) and line["pinned"] is False for line in lines)


def test_a_run_is_pinned_unpinned_and_deleted(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = runs.done(store).id

    assert command(store, "pin", run_id) == 0
    assert store.is_pinned(run_id)
    assert command(store, "delete", run_id) == 2
    assert f"{run_id} is pinned.\nRun first: nnterp-mcp runs unpin {run_id}" in capsys.readouterr().err
    assert main(["runs", "--runs", str(store.folder), "unpin", run_id]) == 0
    assert not store.is_pinned(run_id)
    assert command(store, "delete", run_id) == 0
    assert store.latest(9) == []
    assert command(store, "delete", run_id) == 2
    assert f"there is no run '{run_id}'" in capsys.readouterr().err


def test_a_run_under_way_is_not_deleted(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = runs.opened(store).id

    assert command(store, "delete", run_id) == 2
    assert f"{run_id} is running." in capsys.readouterr().err
    assert store.read(run_id).state == "running"


def environment_of(recorded: Recorded, run_id: str) -> RunEnvironment:
    made = recorded.store.read(run_id).environment
    assert made is not None
    return made


def test_a_run_is_shown_with_its_answer(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = recorded.ids["prompt set"]

    assert main(["runs", "show", run_id, "--data", str(recorded.settings.data)]) == 0
    facts, answer = capsys.readouterr().out.split("\n\n", 1)
    assert facts.startswith(f"{run_id}: done\ncalled: ")
    assert "\ntool: run_prompts\n  prompts: [" in facts
    assert all(f"{name} {version}" in facts for name, version in environment_of(recorded, run_id).versions.items())
    assert answer.startswith(recorded.texts["prompt set"].splitlines()[0])
    assert "Parts for --part: " in answer
    assert "read_run" not in answer

    assert main(["runs", "show", run_id, "--data", str(recorded.settings.data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recorded.store.read(run_id).model_dump(mode="json")


def test_a_run_that_failed_is_shown(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    record = runs.opened(store, owner=runs.GONE)

    assert command(store, "show", record.id) == 0
    assert capsys.readouterr().out.startswith(f"{record.id}: interrupted\n")


def test_a_part_of_a_run_is_shown_page_by_page(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["runs", "show", recorded.ids["lens"], "--part", "readings.layers", "--limit", "3"]

    assert main([*asked, "--data", str(recorded.settings.data)]) == 0
    assert capsys.readouterr().out.endswith("\n13 more rows: --offset 3.\n")


def test_no_run_and_no_id(store: RunStore) -> None:
    shown = run("runs", "show", "logit_lens-aaaaaa", "--runs", str(store.folder))

    assert (shown.returncode, shown.stdout) == (2, "")
    assert "there is no run 'logit_lens-aaaaaa'" in shown.stderr
    assert "nnterp-mcp runs lists the latest runs." in shown.stderr
    assert "a run id looks like" in run("runs", "delete", "../../x").stderr
    assert "RUN" in run("runs", "pin").stderr


def test_runs_are_listed_and_exported_without_torch(recorded: Recorded) -> None:
    commands = [["runs"], ["runs", "show", recorded.ids["lens"]], ["export", recorded.ids["steering"]]]
    calls = [f" assert main({[*command, '--data', str(recorded.settings.data)]!r}) == 0" for command in commands]
    quiet = "import contextlib, io\nfrom nnterp_mcp.cli import main\nwith contextlib.redirect_stdout(io.StringIO()):"

    assert loaded_by("\n".join([quiet, *calls])) == []
