"""The run store against real folders, real processes and disks that are really full."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.runs.records import is_run_id
from nnterp_mcp.runs.store import Quota, RunStore
from tests.recorded_runs import ENVIRONMENT, GONE, PARAMS, TOOLS, describe, done, opened

DAY = 86400.0
ON_DISK = settings(max_examples=30)
UNBOUNDED = Quota(bytes=float("inf"), days=float("inf"))
DTYPES = (np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def age(store: RunStore, run_id: str, days: float) -> None:
    """Makes a run look as if it had been written so many days ago."""
    then = time.time() - days * DAY
    os.utime(store.folder / run_id, (then, then))


def ids(store: RunStore) -> set[str]:
    return {path.name for path in store.folder.iterdir() if is_run_id(path.name)}


def files(store: RunStore, run_id: str) -> list[str]:
    return sorted(path.name for path in (store.folder / run_id).iterdir())


class TestRoundTrip:
    @ON_DISK
    @given(TOOLS, PARAMS, PARAMS, st.binary(max_size=200))
    def test_what_was_written_is_read(
        self, tool: str, params: dict[str, Any], request: dict[str, Any], result: bytes
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder))
            begun = opened(store, tool, params=params, request=request, seed=3)
            assert RunStore(Path(folder)).read(begun.id) == begun
            ended = begun.model_copy(
                update={
                    "state": "done",
                    "environment": ENVIRONMENT,
                    "queue_seconds": 0.25,
                    "result_sha256": store.write_result(begun.id, result),
                }
            )
            store.write(ended)

            assert RunStore(Path(folder)).read(begun.id) == ended
            assert store.read_result(ended) == result
            assert json.loads((Path(folder) / begun.id / "run.json").read_text())["params"] == params

    @ON_DISK
    @given(
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=4, max_side=5))
        ),
        st.data(),
    )
    def test_arrays_and_their_parts_are_read_as_they_were(self, array: np.ndarray, data: st.DataObject) -> None:
        laid = np.asfortranarray(array) if data.draw(st.booleans()) else array
        starts = data.draw(st.tuples(*(st.integers(0, side - 1) for side in array.shape)))
        stops = data.draw(st.tuples(*map(st.integers, (start + 1 for start in starts), array.shape)))
        part = tuple(map(slice, starts, stops))
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder))
            run_id = opened(store).id
            axes = {f"axis {place}": list(range(side)) for place, side in enumerate(array.shape)}
            card = store.write_array(run_id, "numbers", laid, axes)

            assert (card.dtype, card.shape, card.axes) == (str(array.dtype), list(array.shape), axes)
            np.testing.assert_array_equal(store.read_array(run_id, "numbers", part), array[part])


class TestIds:
    def test_threads_and_processes_that_mint_at_once_never_share_one(self, store: RunStore) -> None:
        code = (
            "import sys; from pathlib import Path; from nnterp_mcp.runs.store import RunStore\n"
            "from tests.recorded_runs import opened\n"
            "store = RunStore(Path(sys.argv[1]))\n"
            "print(*(opened(store).id for _ in range(100)))"
        )
        with ThreadPoolExecutor(8) as threads:
            others = [
                subprocess.Popen([sys.executable, "-c", code, str(store.folder)], stdout=subprocess.PIPE)
                for _ in range(2)
            ]
            minted = list(threads.map(lambda _: opened(store).id, range(200)))
            minted += [run_id for other in others for run_id in other.communicate()[0].decode().split()]

        assert len(minted) == len(set(minted)) == 400
        assert ids(store) == set(minted)
        assert all(store.read(run_id).id == run_id for run_id in minted)

    def test_an_id_that_is_taken_is_not_given_again(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
        letters = iter("aaaaaaaaaaaaaaaaab")
        monkeypatch.setattr("nnterp_mcp.runs.store.secrets.choice", lambda _: next(letters))

        assert [opened(store).id, opened(store).id] == ["logit_lens-aaaaaa", "logit_lens-aaaaab"]

    @given(
        st.text(max_size=60)
        | st.sampled_from(
            ["..", ".", "", "/", "../x", "logit_lens-k3f7qa/..", "logit_lens-k3f7qa\n", "/etc/passwd", "unfinished"]
        )
        | st.builds("{}/{}".format, st.sampled_from(["..", "/tmp", "a"]), st.from_regex(r"[a-z_]{3}-[a-z2-7]{6}"))
    )
    def test_a_path_is_no_run_id(self, name: str) -> None:
        if is_run_id(name):
            return
        store = RunStore(Path("nowhere"))
        for reach in (
            store.read,
            store.size,
            store.is_pinned,
            store.delete,
            lambda run_id: store.write_result(run_id, b""),
            lambda run_id: store.read_array(run_id, "a", ()),
            lambda run_id: store.pin(run_id, True),
        ):
            with pytest.raises(InvalidRequest, match="a run id looks like 'logit_lens-k3f7qa', so not "):
                reach(name)

    def test_a_run_that_never_was(self, store: RunStore) -> None:
        with pytest.raises(InvalidRequest, match="there is no run 'steer-abcdef': it never was, or was deleted"):
            store.read("steer-abcdef")


class TestDamage:
    @ON_DISK
    @given(damage=st.binary(max_size=40) | st.sampled_from([b"{}", b"[]", b"null", b'{"id": 3}', b"\xff\xfe"]))
    def test_a_damaged_record_is_told_and_harms_no_other(self, damage: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder))
            whole, harmed = done(store), done(store)
            (store.folder / harmed.id / "run.json").write_bytes(damage)

            with pytest.raises(InvalidRequest, match=f"the record of {harmed.id} is damaged"):
                store.read(harmed.id)
            assert store.read(whole.id) == whole
            assert [record.id for record in store.latest(5)] == [whole.id]
            age(store, harmed.id, 1)
            assert set(store.sweep(Quota(bytes=0, days=1))) == {whole.id, harmed.id}

    def test_a_record_that_is_a_folder_is_told(self, store: RunStore) -> None:
        run_id = done(store).id
        (store.folder / run_id / "run.json").unlink()
        (store.folder / run_id / "run.json").mkdir()

        with pytest.raises(InvalidRequest, match=f"the record of {run_id} cannot be read: Is a directory"):
            store.read(run_id)
        assert store.latest(3) == []

    @ON_DISK
    @given(st.binary(min_size=1, max_size=60), st.integers(0, 59), st.integers(1, 255))
    def test_a_flipped_byte_of_a_result_is_told(self, result: bytes, place: int, flip: int) -> None:
        place %= len(result)
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder))
            record, other = done(store, result), done(store, result)
            path = store.folder / record.id / "result.json"
            path.write_bytes(result[:place] + bytes([result[place] ^ flip]) + result[place + 1 :])

            with pytest.raises(InvalidRequest, match=f"the result of {record.id} is damaged"):
                store.read_result(record)
            path.unlink()
            with pytest.raises(InvalidRequest, match=f"the result of {record.id} is damaged"):
                store.read_result(record)
            assert store.read_result(other) == result

    @pytest.mark.parametrize("damage", ["gone", "empty", "cut", "noise", "folder", "other name"])
    def test_a_damaged_array_is_told_and_harms_no_other(self, damage: str, store: RunStore) -> None:
        from safetensors.numpy import save

        run_id = opened(store).id
        numbers = np.arange(12.0).reshape(3, 4)
        for name in ("harmed", "whole"):
            store.write_array(run_id, name, numbers, {"layer": [0, 1, 2], "head": [0, 1, 2, 3]})
        path = store.array_path(run_id, "harmed")
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "gone":
            others = {"empty": b"", "cut": content[:-5], "noise": b"\x00\xff" * 50, "other name": save({"x": numbers})}
            path.write_bytes(others[damage])

        with pytest.raises(InvalidRequest, match=f"the array 'harmed' of {run_id} is gone or damaged"):
            store.read_array(run_id, "harmed", (slice(0, 1), slice(0, 4)))
        np.testing.assert_array_equal(store.read_array(run_id, "whole", (slice(1, 2), slice(0, 4))), numbers[1:2])


class TestLatest:
    def test_the_newest_come_first(self, store: RunStore) -> None:
        begun = [done(store, opened=f"2026-01-0{day}T00:00:00.000+00:00").id for day in range(1, 8)]
        for place, run_id in enumerate(begun):
            age(store, run_id, 10 - place)

        assert [record.id for record in store.latest(3)] == begun[:-4:-1]
        assert [record.id for record in store.latest(100)] == begun[::-1]
        assert store.latest(0) == []

    def test_a_folder_that_does_not_exist_holds_no_run(self, store: RunStore) -> None:
        assert store.latest(3) == []
        assert store.sweep(Quota(0, 0)) == []

    def test_two_thousand_runs_are_listed_at_once(self, store: RunStore) -> None:
        store.folder.mkdir()
        letters = "abcdefghijklmnopqrstuvwxyz234567"
        for count in range(2000):
            run_id = f"steer-aaa{letters[count % 32]}{letters[count // 32 % 32]}{letters[count // 1024]}"
            (store.folder / run_id).mkdir()
            (store.folder / run_id / "run.json").write_text(describe(run_id, state="done").model_dump_json())
        assert len(ids(store)) == 2000

        # The processor's time, for a busy machine is no fault of ours.
        spent = []
        for _ in range(5):
            begun = time.process_time()
            assert len(store.latest(8)) == 8
            spent.append(time.process_time() - begun)
        print(f"latest(8) of 2,000 runs: {min(spent) * 1000:.1f} ms")
        assert min(spent) < 0.05


class TestSweep:
    def test_the_oldest_make_room_until_the_rest_fits(self, store: RunStore) -> None:
        begun = [done(store, b"x" * 10_000).id for _ in range(6)]
        for place, run_id in enumerate(begun):
            age(store, run_id, 6 - place)
        room = sum(map(store.size, begun[3:]))

        assert store.sweep(UNBOUNDED) == []
        assert store.sweep(Quota(bytes=room, days=90)) == begun[:3]
        assert ids(store) == set(begun[3:])
        assert store.sweep(Quota(bytes=room, days=90)) == []

    def test_parts_of_unfinished_calls_take_room_too(self, store: RunStore) -> None:
        older, younger = done(store, b"x" * 10_000).id, done(store, b"x" * 10_000).id
        age(store, older, 2)
        room = store.size(older) + store.size(younger)
        (store.unfinished / "call").mkdir(parents=True)
        (store.unfinished / "call" / "0.json").write_bytes(b"x" * 100)

        assert store.sweep(Quota(bytes=room, days=90)) == [older]
        assert (store.unfinished / "call" / "0.json").exists()

    def test_those_that_are_too_old_go(self, store: RunStore) -> None:
        old, young = done(store).id, done(store).id
        age(store, old, 31)
        age(store, young, 29)

        assert store.sweep(Quota(bytes=float("inf"), days=30)) == [old]
        assert ids(store) == {young}

    def test_pinned_runs_and_those_that_run_stay_whatever_the_quota_says(self, store: RunStore) -> None:
        pinned, running, plain = done(store).id, opened(store).id, done(store).id
        interrupted = opened(store, owner=GONE).id
        store.pin(pinned, True)
        for run_id in ids(store):
            age(store, run_id, 1000)

        assert set(store.sweep(Quota(bytes=0, days=1))) == {plain, interrupted}
        assert ids(store) == {pinned, running}
        store.pin(pinned, False)
        assert not store.is_pinned(pinned)
        assert store.sweep(Quota(bytes=0, days=1)) == [pinned]

    def test_a_run_whose_record_is_not_written_yet_stays(self, store: RunStore) -> None:
        def sweep_between(run_id: str) -> Any:
            assert store.sweep(Quota(bytes=0, days=1e-9)) == []
            return describe(run_id)

        assert store.read(store.open("steer", sweep_between).id).state == "running"

    def test_what_a_crash_left_goes_and_what_is_new_stays(self, store: RunStore) -> None:
        kept = done(store).id
        old = [store.folder / ".steer-abcdef-00ff", store.unfinished / "dead"]
        new = [store.folder / ".steer-abcdeg-00ff", store.unfinished / "living"]
        half = store.folder / "steer-abcdeh"
        for folder in (*old, *new, half):
            folder.mkdir(parents=True)
            (folder / "part.json").write_text("{}")
        for folder in (*old, half):
            os.utime(folder, (time.time() - 8 * DAY, time.time() - 8 * DAY))

        assert store.sweep(Quota(bytes=float("inf"), days=5)) == ["steer-abcdeh"]
        assert not any(folder.exists() for folder in (*old, half))
        assert all(folder.exists() for folder in new)
        assert ids(store) == {kept}

    def test_processes_that_write_and_sweep_at_once_lose_nothing(self, store: RunStore) -> None:
        code = (
            "import sys; from pathlib import Path; from nnterp_mcp.runs.store import Quota, RunStore\n"
            "from tests.recorded_runs import done, opened\n"
            "store = RunStore(Path(sys.argv[1]))\n"
            "for turn in range(30):\n"
            "    done(store, b'room for others')\n"
            "    record = opened(store)\n"
            "    store.pin(record.id, True)\n"
            "    ended = {'state': 'done', 'result_sha256': store.write_result(record.id, f'result {turn}'.encode())}\n"
            "    store.write(record.model_copy(update=ended))\n"
            "    print(record.id, turn)\n"
            "    store.sweep(Quota(bytes=20_000, days=1))\n"
        )
        others = [
            subprocess.Popen([sys.executable, "-c", code, str(store.folder)], stdout=subprocess.PIPE) for _ in range(3)
        ]
        said = [other.communicate()[0].decode().split("\n")[:-1] for other in others]

        assert [other.returncode for other in others] == [0, 0, 0]
        pinned = dict(line.split() for lines in said for line in lines)
        assert len(pinned) == 90
        for run_id, turn in pinned.items():
            assert store.read_result(store.read(run_id)) == f"result {turn}".encode()
        assert not list(store.folder.glob(".*"))


@contextmanager
def small_disk(folder: Path) -> Generator[Path]:
    """A disk of 256 kB, or a limit on what may be written where mounting is not allowed."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount a disk; the limit on files is tested beside")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class TestDisk:
    def test_a_full_disk_is_told_and_harms_nothing_that_is_there(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk") as disk:
            store = RunStore(disk / "runs")
            kept = done(store, b"kept")
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as sink:
                while sink.write(b"x" * 4096):
                    pass

            with pytest.raises(LimitExceeded) as refused:
                opened(store)
            assert refused.value.message == "the run cannot be recorded: No space left on device; nothing was computed"
            assert "--runs DIR" in refused.value.next_step
            with pytest.raises(OSError) as full:  # noqa: PT011 - which is checked below
                store.write(kept.model_copy(update={"state": "failed"}))
            assert full.value.errno == errno.ENOSPC
            assert ids(store) == {kept.id}
            assert store.read(kept.id) == kept
            assert store.read_result(kept) == b"kept"
            assert files(store, kept.id) == ["result.json", "run.json"]

            filler.unlink()
            assert store.read(opened(store).id).state == "running"

    def test_a_file_beyond_the_limit_leaves_the_old_one_whole(self, store: RunStore) -> None:
        record = done(store, b"old result")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
        try:
            with pytest.raises(OSError) as large:  # noqa: PT011 - which is checked below
                store.write_result(record.id, b"x" * 100_000)
            with pytest.raises(OSError, match="large"):
                store.write_array(record.id, "numbers", np.zeros(100_000), {"index": range(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        assert large.value.errno == errno.EFBIG
        assert store.read_result(record) == b"old result"
        assert files(store, record.id) == ["result.json", "run.json"]

    @pytest.mark.parametrize("where", ["a file", "below a file", "read-only"])
    def test_a_folder_that_cannot_be_written_is_told(self, where: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        folder = {
            "a file": tmp_path / "file",
            "below a file": tmp_path / "file" / "runs",
            "read-only": Path("/proc/runs"),
        }
        with pytest.raises(LimitExceeded, match="the run cannot be recorded: "):
            opened(RunStore(folder[where]))
