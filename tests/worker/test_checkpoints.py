"""The parts of a long call: found by an equal call, by no other, and none the worse for a damaged one."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import BaseModel

from nnterp_mcp.worker.checkpoints import Checkpoint, key_of
from tests.recorded_runs import JSON, PARAMS


class Part(BaseModel):
    numbers: list[float]
    text: str = ""


class OtherPart(BaseModel):
    tokens: list[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "unfinished" / "key"


def test_what_was_put_is_taken_by_an_equal_call(folder: Path) -> None:
    first, second = Part(numbers=[1 / 3, -0.0, 1e-300], text="ä\n"), Part(numbers=[])
    Checkpoint(folder).put("0", first)
    Checkpoint(folder).put("1", second)
    again = Checkpoint(folder)

    assert again.take("0", Part) == first
    assert again.take("1", Part) == second
    assert again.take("2", Part) is None


def test_a_call_that_has_ended_well_leaves_nothing(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.clear()
    checkpoint.put("0", Part(numbers=[1.0]))
    checkpoint.clear()

    assert not folder.exists()
    assert Checkpoint(folder).take("0", Part) is None


def test_an_equal_call_at_the_same_time_neither_takes_nor_stores(folder: Path) -> None:
    first, second = Checkpoint.claim(folder), Checkpoint.claim(folder)
    first.put("0", Part(numbers=[1.0]))
    second.put("0", Part(numbers=[2.0]))
    assert second.take("0", Part) is None
    second.release()
    assert Checkpoint.claim(folder).take("0", Part) is None
    first.release()
    assert Checkpoint.claim(folder).take("0", Part) == Part(numbers=[1.0])


def test_without_a_folder_nothing_is_kept() -> None:
    checkpoint = Checkpoint(None)
    checkpoint.put("0", Part(numbers=[1.0]))
    assert checkpoint.take("0", Part) is None
    checkpoint.clear()


@given(damage=st.binary(max_size=30))
def test_a_damaged_part_is_computed_again_and_the_others_are_taken(
    damage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    checkpoint = Checkpoint(folder)
    whole = Part(numbers=[2.0])
    checkpoint.put("0", whole)
    checkpoint.put("1", whole)
    (folder / "0.json").write_bytes(damage)

    assert checkpoint.take("0", Part) is None
    assert checkpoint.take("1", Part) == whole
    checkpoint.put("0", whole)
    assert checkpoint.take("0", Part) == whole


def test_a_part_of_another_kind_is_none(folder: Path) -> None:
    Checkpoint(folder).put("0", Part(numbers=[1.0]))
    assert Checkpoint(folder).take("0", OtherPart) is None


def test_a_process_that_is_killed_leaves_whole_parts(folder: Path) -> None:
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from nnterp_mcp.worker.checkpoints import Checkpoint\n"
        "from tests.worker.test_checkpoints import Part\n"
        "checkpoint = Checkpoint(Path(sys.argv[1]))\n"
        "for count in itertools.count():\n"
        "    checkpoint.put(str(count), Part(numbers=[float(count)] * 1000))\n"
        "    print(count, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()

    taken = Checkpoint(folder)
    for count in said:
        assert taken.take(str(count), Part) == Part(numbers=[float(count)] * 1000)
    assert all(part.suffix in (".json", ".part") for part in folder.iterdir())


def test_a_disk_that_refuses_costs_the_part_and_not_the_call(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.put("0", Part(numbers=[1.0]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        checkpoint.put("0", Part(numbers=[2.0] * 10_000))
        checkpoint.put("1", Part(numbers=[2.0] * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert checkpoint.take("0", Part) == Part(numbers=[1.0])
    assert checkpoint.take("1", Part) is None
    assert os.listdir(folder) == ["0.json"]  # noqa: PTH208 - names are what is compared
    Checkpoint(Path("/proc/unfinished/key")).put("0", Part(numbers=[]))


@given(PARAMS, st.text(min_size=1, max_size=8), JSON, JSON)
def test_a_key_differs_when_any_fact_does(facts: dict[str, Any], name: str, value: Any, other: Any) -> None:
    one, two = facts | {name: value}, facts | {name: other}
    alike = repr(value) == repr(other)  # not ==, for 1 and True and 1.0 are three parameters

    assert key_of(one) == key_of(dict(reversed(one.items())))
    if alike:
        assert key_of(one) == key_of(two)
    if value != other:
        assert key_of(one) != key_of(two)
    assert key_of(one) != key_of({**one, f"{name}+": value})
    assert "/" not in key_of(one)
