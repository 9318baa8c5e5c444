"""Arrays that are filled row by row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.runs.arrays import FileRows, HeldRows


@given(
    order=st.permutations(range(6)),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    layers=st.integers(1, 3),
    count=st.integers(0, 6),
)
def test_a_file_holds_the_rows_that_were_put_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], sizes: list[int], layers: int, count: int
) -> None:
    axes = {"row": [*range(6)], "layer": [f"é{layer}" for layer in range(layers)]}
    axes |= {f"axis {at}": [*range(size)] for at, size in enumerate(sizes)}
    drawn = np.random.default_rng(0).normal(size=[6, layers, *sizes]).astype(np.float32)
    path = tmp_path_factory.mktemp("rows") / "states.safetensors"
    on_disk, held = FileRows(path, axes), HeldRows(axes)
    expected = np.full_like(drawn, np.nan)
    for start in range(0, count, 2):
        numbers = order[start : min(start + 2, count)]
        expected[numbers] = drawn[numbers]
        for rows in (on_disk, held):
            rows.put(numbers, drawn[numbers])
    known = order[:count]

    assert np.array_equal(on_disk.along(layers - 1)[known], expected[known, layers - 1])
    assert np.array_equal(held.along(layers - 1), expected[:, layers - 1], equal_nan=True)
    assert not path.exists()
    card = on_disk.close()
    with safe_open(path, framework="numpy") as source:
        assert np.array_equal(source.get_tensor("array"), expected, equal_nan=True)
        assert json.loads(source.metadata()["axes"]) == card.axes == axes
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert np.array_equal(held.numbers, expected, equal_nan=True)


def test_an_abandoned_array_leaves_nothing(tmp_path: Path) -> None:
    rows = FileRows(tmp_path / "states.safetensors", {"row": [0, 1], "layer": [0]})
    rows.put([1], np.ones((1, 1)))
    rows.abandon()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    (tmp_path / ".states.safetensors.part").symlink_to("/dev/full")

    with pytest.raises(LimitExceeded, match="the states cannot be kept: No space left on device"):
        FileRows(tmp_path / "states.safetensors", {"row": range(4096), "layer": range(4096)}).put(
            range(4096), np.ones((4096, 4096), dtype=np.float32)
        )


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match="the states cannot be kept: No such file"):
        FileRows(tmp_path / "gone" / "states.safetensors", {"row": [0]})
