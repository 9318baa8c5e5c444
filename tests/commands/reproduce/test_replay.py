"""Replays of runs that a real server recorded, in another process than that server's worker."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.cli import main
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.settings import Settings
from tests import recorded_runs as runs
from tests.recorded import EXAMPLES, Recorded
from tests.serving import environment, stdio, text

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.


@pytest.fixture
def copied(recorded: Recorded, tmp_path: Path) -> Settings:
    """The recorded runs and their vectors, to be changed."""
    data = tmp_path / "data"
    shutil.copytree(recorded.settings.data, data)
    return Settings(data=data)


def replayed(run_id: str, settings: Settings, tolerance: float = 1e-5) -> Any:
    from nnterp_mcp.commands.reproduce.replay import replay

    return replay(run_id, settings, tolerance)


def rewrite(settings: Settings, run_id: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a run's result, and has its record vouch for it."""
    store = RunStore(settings.runs)
    record = store.read(run_id)
    result = json.loads(store.read_result(record))
    change(result)
    content = json.dumps(result).encode()
    store.write_result(run_id, content)
    store.write(record.model_copy(update={"result_sha256": hashlib.sha256(content).hexdigest()}))


def amend(settings: Settings, run_id: str, **facts: Any) -> RunRecord:
    store = RunStore(settings.runs)
    record = store.read(run_id).model_copy(update=facts)
    store.write(record)
    return record


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_replay_gives_the_same_numbers(name: str, recorded: Recorded) -> None:
    found = replayed(recorded.ids[name], recorded.settings)

    assert found.equal, [field.example for field in found.fields if field.example]
    assert found.environment == []
    assert sum(field.numbers for field in found.fields) > 0
    arrays = set(recorded.store.read(recorded.ids[name]).arrays)
    assert arrays <= {field.field for field in found.fields if field.numbers}


def test_a_replay_of_a_vector_leaves_the_kept_one_alone(recorded: Recorded) -> None:
    before = [(card.name, card.made) for card in recorded.vectors.cards()]

    replayed(recorded.ids["vector"], recorded.settings)

    assert [(card.name, card.made) for card in recorded.vectors.cards()] == before


def test_what_differs_is_named(copied: Settings, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = recorded.ids["lens"]

    def change(result: dict[str, Any]) -> None:
        result["readings"][1]["layers"][2]["kl"] *= 1.001
        result["readings"][0]["token"] = "another"

    rewrite(copied, run_id, change)
    code = main(["replay", run_id, "--data", str(copied.data)])
    said = capsys.readouterr().out

    assert code == 1
    assert f"{run_id}: 2 values differ (" in said
    assert "differs: readings[0].token: 'another' → " in said
    assert "differs: readings[1].layers[2].kl: " in said
    assert said.endswith("environment: the same\n")
    assert main(["replay", run_id, "--data", str(copied.data), "--tolerance", "0.01"]) == 1
    rewrite(copied, run_id, lambda result: result["readings"][0].update(token="T"))
    found = replayed(run_id, copied, 0.01)
    assert [field.field for field in found.fields if field.differing] == ["readings.token"]


def test_equal_runs_end_with_code_0(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = recorded.ids["prompt set"]

    assert main(["replay", run_id, "--data", str(recorded.settings.data), "--tolerance", "1e-4"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{run_id}: equal (")
    assert "rows.probabilities | 8 | 0 | " in said.out
    assert "loading" in said.err or "checking the model" in said.err


def test_an_array_that_differs_is_named(copied: Settings, recorded: Recorded) -> None:
    run_id = recorded.ids["patching"]
    store = RunStore(copied.runs)
    (name, card), *_ = store.read(run_id).arrays.items()
    kept = store.read_array(run_id, name, tuple(slice(None) for _ in card.shape))
    store.write_array(run_id, name, kept + 1, card.axes)

    (field,) = (field for field in replayed(run_id, copied).fields if field.differing)

    assert (field.field, field.differing, field.largest) == (name, kept.size, pytest.approx(1.0))


def test_other_weights_are_told(copied: Settings, recorded: Recorded, tiny: Callable[..., Path]) -> None:
    amend(copied, recorded.ids["prompt set"], request={"model": str(tiny("llama", seed=1))})

    found = replayed(recorded.ids["prompt set"], copied)

    assert not found.equal
    changed = {change.split(":")[0] for change in found.environment}
    assert {"source", "fingerprint", "model.safetensors sha256"} <= changed
    assert "torch" not in changed


def test_a_changed_environment_is_listed(copied: Settings, recorded: Recorded) -> None:
    run_id = recorded.ids["prompt set"]
    environment = RunStore(copied.runs).read(run_id).environment
    assert environment is not None
    older = environment.model_copy(update={"versions": environment.versions | {"torch": "1.0"}, "threads": 99})
    amend(copied, run_id, environment=older)

    found = replayed(run_id, copied)

    assert found.equal
    assert found.environment == [f"torch: 1.0 → {environment.versions['torch']}", "threads: 99 → 1"]


def test_a_vector_that_is_gone_or_made_anew_is_told(copied: Settings, recorded: Recorded) -> None:
    from nnterp_mcp import Laboratory

    run_id = recorded.ids["steering"]
    model = recorded.store.read(run_id).request["model"]
    lab = Laboratory(model, settings=copied)
    lab.make_vector(name="joy", method="random", norm=1.0)

    found = replayed(run_id, copied)
    assert found.replaced == ["joy"]
    assert not found.equal

    lab.make_vector(name="joy", method="delete")
    with pytest.raises(InvalidRequest, match=f"{run_id} used the vector 'joy' of tiny-llama, and that is gone"):
        replayed(run_id, copied)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"state": "failed"}, "is failed: only a run that is done can be run again"),
        ({"state": "cancelled", "partial": True}, "is cancelled, with a part of its result: only a run that is done"),
        ({"state": "running", "owner": runs.GONE}, "is interrupted: only"),
        ({"tool": "horoscope"}, "is a run of horoscope, a tool that this version does not have"),
        ({"params": {"method": "delete", "name": "joy"}}, "deleted a vector: there is nothing in it to compute"),
        ({"params": {"prompts": "a", "fashion": 1}}, "logit_lens has no argument 'fashion'"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "export"])
def test_what_cannot_be_run_again_is_refused(
    command: str, facts: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = runs.done(RunStore(tmp_path)).id
    amend(Settings(runs=tmp_path), run_id, **facts)

    assert main([command, run_id, "--runs", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_result_of_another_version_is_refused(copied: Settings, recorded: Recorded) -> None:
    rewrite(copied, recorded.ids["lens"], lambda result: result.pop("last_layer"))

    with pytest.raises(InvalidRequest, match="has not the form that this version's logit_lens gives"):
        replayed(recorded.ids["lens"], copied)


@pytest.mark.slow
@pytest.mark.smollm2
def test_a_run_of_a_real_model_is_replayed_and_exported(
    tmp_path: Path, smollm2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path)]
    with stdio(data=tmp_path) as caller:
        caller.call("load_model", model="smollm2-135m")
        asked = {"prompts": "The capital of France is", "targets": {"capital": "Paris", "traps": ["London", "Madrid"]}}
        said = caller.call("logit_lens", **asked)
    run_id = said.structured_content["run_id"]

    assert main(["replay", run_id, *data]) == 0
    assert capsys.readouterr().out.startswith(f"{run_id}: equal (")
    assert main(["export", run_id, *data, "-o", str(tmp_path / "lens.py")]) == 0
    command = [sys.executable, str(tmp_path / "lens.py")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *answered, parts, run = text(said).splitlines()
    assert done.stdout.splitlines() == answered
    assert (parts.partition(":")[0], run) == ("Parts for read_run", "run_id: logit_lens-xxxxxx")
    assert 'smollm2-135m predicts " Paris" (0.773)' in done.stdout
