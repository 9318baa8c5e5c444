"""Exported scripts: they run as they are, in a process of their own, and their numbers are the run's."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.cli import main
from nnterp_mcp.commands.reproduce.comparison import compare
from nnterp_mcp.commands.reproduce.export import as_source, export
from nnterp_mcp.errors import InvalidRequest
from tests.recorded import EXAMPLES, Recorded
from tests.recorded_runs import JSON
from tests.serving import environment

TELLS_WHEN = ("seconds", "taken", "made", "replaced")
EVERY = """
import contextlib, io, json, runpy, sys
told = {}
for path in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = runpy.run_path(path)["result"]
    told[path] = [printed.getvalue(), json.loads(result.model_dump_json())]
print(json.dumps(told))
"""


def without_times(text: str) -> list[str]:
    """The lines of an answer that do not depend on when it was computed."""
    return [line for line in text.splitlines() if not line.startswith(("run_id: ", "Parts for read_run: "))]


@pytest.fixture(scope="module")
def scripts(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scripts")
    paths = {name: folder / f"{run_id}.py" for name, run_id in recorded.ids.items()}
    for name, path in paths.items():
        path.write_text(export(recorded.store.read(recorded.ids[name]), recorded.settings.data))
    return paths


@pytest.fixture(scope="module")
def told(scripts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Any]]:
    """What every script prints, and its result, all run in one process; nothing of the server's is in reach."""
    data = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-W", "error:::nnterp_mcp", "-c", EVERY, *map(str, scripts.values())]
    done = subprocess.run(
        command, env=environment(data=data), cwd=data, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(data.iterdir()) == []
    by_path = json.loads(done.stdout.splitlines()[-1])
    return {name: tuple(by_path[str(path)]) for name, path in scripts.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_script_prints_what_was_answered(name: str, told: dict[str, tuple[str, Any]], recorded: Recorded) -> None:
    assert without_times(told[name][0]) == without_times(recorded.texts[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_script_holds_every_number(name: str, told: dict[str, tuple[str, Any]], recorded: Recorded) -> None:
    kept = json.loads(recorded.store.read_result(recorded.store.read(recorded.ids[name])))

    fields = compare(kept, told[name][1], 1e-5, TELLS_WHEN)

    assert [field.example for field in fields if field.differing] == []
    assert sum(field.numbers for field in fields) > 0


@pytest.mark.slow
def test_a_script_runs_by_itself(scripts: dict[str, Path], recorded: Recorded, tmp_path: Path) -> None:
    command = [sys.executable, str(scripts["steering"])]

    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert without_times(done.stdout) == without_times(recorded.texts["steering"])


def test_a_script_says_what_it_is_and_no_more_than_was_asked(recorded: Recorded, scripts: dict[str, Path]) -> None:
    script = scripts["sampling"].read_text()
    record = recorded.store.read(recorded.ids["sampling"])
    assert record.environment is not None

    head = ast.get_docstring(ast.parse(script)) or ""
    assert head.startswith(f"{record.id}: generate on tiny-llama, {record.opened[:10]}.")
    assert f"torch {record.environment.versions['torch']}" in head
    assert record.environment.fingerprint in head
    assert script.endswith(
        f'lab = Laboratory("{record.request["model"]}", dtype="float32")\n'
        """
result = lab.generate(
    prompts=["Once upon"],
    interventions=[{"op": "zero", "layers": [1, 2], "site": "heads_output", "heads": [0, 3]}],
    max_new_tokens=6,
    temperature=1.3,
    seed=5,
    logprobs=True,
)

print(lab.show(result))
"""
    )


def test_vectors_are_made_from_what_they_were_made_of(scripts: dict[str, Path]) -> None:
    script = scripts["patchscope of vectors"].read_text()

    assert script.count("lab.make_vector(") == 2
    assert "settings=Settings(data=vectors.name, runs=Settings().runs)" in script
    assert "make_vector" not in scripts["attention"].read_text()


def test_a_vector_that_is_gone_cannot_be_made_again(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="used the vector 'joy' of tiny-llama, and that is gone"):
        export(recorded.store.read(recorded.ids["steering"]), tmp_path)


def test_the_command_prints_or_writes(
    recorded: Recorded, scripts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, data = recorded.ids["lens"], str(recorded.settings.data)

    assert main(["export", run_id, "--data", data]) == 0
    assert capsys.readouterr().out == scripts["lens"].read_text()
    assert main(["export", run_id, "--data", data, "-o", str(tmp_path / "lens.py")]) == 0
    assert (tmp_path / "lens.py").read_text(encoding="utf-8") == scripts["lens"].read_text()
    assert main(["export", run_id, "--data", data, "-o", str(tmp_path / "no" / "lens.py")]) == 2
    assert "lens.py cannot be written: No such file or directory" in capsys.readouterr().err


@given(JSON, st.integers(0, 3))
def test_a_literal_is_what_it_says(value: Any, depth: int) -> None:
    assert ast.literal_eval(as_source(value, depth)) == value


@given(st.text())
def test_texts_survive_whatever_they_hold(text: str) -> None:
    assert ast.literal_eval(as_source(text)) == text
    ast.parse(as_source(text).encode("utf-8"))


def test_what_is_long_has_one_item_a_line() -> None:
    words = [f"a fairly long word {index}" for index in range(6)]

    assert as_source({"words": words}).splitlines() == [
        "{",
        '    "words": [',
        *(f'        "{word}",' for word in words),
        "    ],",
        "}",
    ]
