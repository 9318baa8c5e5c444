"""What a worker writes of a run, beside a real model: read back, and compared with what torch and hashlib say."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nnterp_mcp.contract import Result, ResultPart
from nnterp_mcp.errors import Cancelled, InvalidRequest, NnterpError, OutOfMemory
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.pool.messages import Recorded
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.main import _give_up  # pyright: ignore[reportPrivateUsage] - as the loop of a worker calls it
from nnterp_mcp.worker.model_files import ModelFiles, ModelOrigin
from nnterp_mcp.worker.recorder import Recorder
from nnterp_mcp.worker.workbench import Bench
from tests.recorded_runs import opened


class Numbers(Result):
    numbers: list[float]
    text: str = ""


class Part(ResultPart):
    number: float


class Nested(Result):
    parts: list[Part]
    pairs: dict[str, tuple[float, str]]


SMALL = Numbers(numbers=[1 / 3, 2.0], text="ä")


@pytest.fixture(scope="module")
def bench(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench("tiny", Settings(runs=tmp_path_factory.mktemp("runs")))
    made.place(StandardizedTransformer(str(tiny("llama"))))
    return made


@pytest.fixture(scope="module")
def store(bench: Bench) -> RunStore:
    return RunStore(bench.settings.runs)


def recorder(bench: Bench, **facts: Any) -> Recorder:
    store = RunStore(bench.settings.runs)
    return Recorder(store, lambda: bench.environment, Recorded(run=opened(store, **facts).id, queued=0.25))


@contextmanager
def files_of(most: int) -> Generator[None]:
    """No file may be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_numbers_that_are_not_finite_are_json_and_read_back(bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    inf = float("inf")
    run.finish(Nested(parts=[Part(number=float("nan")), Part(number=0.1)], pairs={"a": (-inf, "b")}))

    content = store.read_result(store.read(run.run_id))
    assert json.loads(content, parse_constant=pytest.fail)["parts"][1] == {"number": 0.1}
    read = Nested.model_validate_json(content)
    assert math.isnan(read.parts[0].number)
    assert read.pairs == {"a": (-inf, "b")}


def test_a_finished_run_is_on_disk_with_all_that_its_numbers_depend_on(bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    assert run.finish(SMALL) == []
    record = store.read(run.run_id)
    content = (store.folder / run.run_id / "result.json").read_bytes()

    assert (record.state, record.partial, record.error) == ("done", False, None)
    assert record.result_sha256 == hashlib.sha256(content).hexdigest()
    assert Numbers.model_validate_json(store.read_result(record)) == SMALL
    assert record.environment is not None
    assert record.environment.versions["torch"] == torch.__version__
    assert record.environment.threads == torch.get_num_threads()
    assert (record.environment.dtype, record.environment.device) == ("float32", "cpu")
    assert record.environment.fingerprint == bench.identity.fingerprint
    assert record.queue_seconds == 0.25
    assert record.compute_seconds is not None
    assert 0 <= record.compute_seconds < 60
    assert record.ended is not None
    assert record.opened <= record.ended


@pytest.mark.parametrize(
    "array",
    [
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T.reshape(4, 3).T,
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).half(),
        torch.arange(12).reshape(3, 4),
        torch.randn(3, 4, requires_grad=True),
    ],
    ids=["float32", "transposed", "bfloat16", "float16", "int64", "with gradients"],
)
def test_an_array_is_kept_number_by_number(array: torch.Tensor, bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    run.keep("pattern", array, {"layer": [2, 5, 9], "head": range(4)})
    assert run.finish(SMALL) == []
    card = store.read(run.run_id).arrays["pattern"]
    read = store.read_array(run.run_id, "pattern", (slice(0, 3), slice(0, 4)))

    assert (card.shape, card.axes) == ([3, 4], {"layer": [2, 5, 9], "head": [0, 1, 2, 3]})
    assert card.dtype == str(read.dtype)
    assert read.tolist() == array.tolist()


def test_a_call_that_failed_keeps_what_it_had(bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    run.keep("pattern", torch.zeros(2), {"layer": [0, 1]})
    run.fail(OutOfMemory("it did not fit", "Ask for less."), SMALL)
    record = store.read(run.run_id)

    assert (record.state, record.partial) == ("failed", True)
    assert record.error is not None
    assert (record.error.code, record.error.message) == ("out_of_memory", "it did not fit")
    assert Numbers.model_validate_json(store.read_result(record)) == SMALL
    assert list(record.arrays) == ["pattern"]


@pytest.mark.parametrize(("error", "state"), [(Cancelled("enough"), "cancelled"), (InvalidRequest("no"), "failed")])
def test_a_call_that_had_nothing_keeps_its_error(error: NnterpError, state: str, bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    run.fail(error, None)
    record = store.read(run.run_id)

    assert (record.state, record.partial, record.result_sha256) == (state, False, None)
    with pytest.raises(InvalidRequest, match=f"{run.run_id} has no result"):
        store.read_result(record)


def test_a_result_that_the_disk_refuses_is_told_in_the_answer_and_in_the_record(bench: Bench, store: RunStore) -> None:
    before = recorder(bench)
    before.finish(SMALL)
    run = recorder(bench)
    run.keep("pattern", torch.zeros(2), {"layer": [0, 1]})
    run.checkpoint().put("0", Part(number=1.0))
    with files_of(16_384):
        (note,) = run.finish(Numbers(numbers=[0.125] * 10_000))
    record = store.read(run.run_id)

    assert note == "This answer could not be recorded (File too large): read_run will not find it."
    assert (record.state, record.arrays, record.result_sha256) == ("failed", {}, None)
    assert record.error is not None
    assert record.error.code == "limit_exceeded"
    assert record.error.message == f"the result of {run.run_id} could not be recorded: File too large"
    assert [path.name for path in (store.folder / run.run_id).iterdir()] == ["run.json"]
    assert store.read(before.run_id).state == "done"
    assert recorder(bench).checkpoint().take("0", Part) == Part(number=1.0), "an equal call must compute it again"


def test_an_array_that_the_disk_refuses_costs_no_more_than_itself(bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    with files_of(16_384):
        run.keep("large", torch.zeros(10_000), {"index": range(10_000)})
        run.keep("small", torch.ones(2), {"layer": [0, 1]})
        assert run.finish(SMALL) == ["The array large could not be kept (File too large)."]
    record = store.read(run.run_id)

    assert (record.state, list(record.arrays)) == ("done", ["small"])
    assert Numbers.model_validate_json(store.read_result(record)) == SMALL


def test_a_record_is_completed_when_the_files_of_the_model_are_hashed(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    bench = Bench("tiny", Settings(runs=tmp_path / "runs"))
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama"), folder)
    with (folder / "large.safetensors").open("wb") as sink:
        sink.truncate(500_000_000)
    files = ModelFiles(folder)
    bench.place(StandardizedTransformer(str(tiny("llama"))), ModelOrigin("here", files=files))
    run = recorder(bench)
    assert run.finish(SMALL) == []
    run.settle(files)
    files.wait()
    record = RunStore(bench.settings.runs).read(run.run_id)

    assert record.environment is not None
    assert record.state == "done"
    assert record.environment.files["large.safetensors"].sha256 == hashlib.sha256(bytes(500_000_000)).hexdigest()
    assert all(card.sha256 for card in record.environment.files.values())


def test_a_run_that_was_deleted_under_its_worker_costs_no_answer(bench: Bench, store: RunStore) -> None:
    run = recorder(bench)
    store.delete(run.run_id)
    run.keep("pattern", torch.zeros(2), {"layer": [0, 1]})
    (note,) = run.finish(SMALL)

    assert note.startswith("This answer could not be recorded (")
    assert str(store.folder) not in note
    assert not (store.folder / run.run_id).exists()


def test_a_partial_result_that_cannot_be_made_hides_no_error(bench: Bench, store: RunStore) -> None:
    def fail() -> Result:
        raise KeyError("no part is there")

    job = Job(1, lambda progress: None, recorder(bench), fail)
    assert job.recorder is not None
    error = _give_up(job, OutOfMemory("it did not fit", "Ask for less."))
    record = store.read(job.recorder.run_id)

    assert (type(error), error.message, error.next_step) == (OutOfMemory, "it did not fit", "Ask for less.")
    assert (record.state, record.partial) == ("failed", False)


class TestCheckpoint:
    def test_an_equal_call_takes_up_what_a_dead_one_had(self, bench: Bench) -> None:
        dead = recorder(bench, params={"prompts": ["a"], "layers": [1]})
        dead.checkpoint().put("0", Part(number=0.5))
        dead.fail(OutOfMemory("it did not fit"), None)
        again = recorder(bench, params={"layers": [1], "prompts": ["a"]})
        assert again.checkpoint().take("0", Part) == Part(number=0.5)

        assert again.finish(SMALL) == []
        assert recorder(bench, params={"layers": [1], "prompts": ["a"]}).checkpoint().take("0", Part) is None

    @pytest.mark.parametrize("facts", [{"params": {"prompts": ["b"]}}, {"tool": "steer", "params": {"prompts": ["a"]}}])
    def test_another_call_takes_nothing(self, facts: dict[str, Any], bench: Bench) -> None:
        recorder(bench, params={"prompts": ["a"]}).checkpoint().put("0", Part(number=0.5))
        assert recorder(bench, **facts).checkpoint().take("0", Part) is None

    def test_a_call_on_other_weights_takes_nothing(self, bench: Bench, tiny: Callable[..., Path]) -> None:
        other = Bench("tiny", bench.settings)
        other.place(StandardizedTransformer(str(tiny("llama", seed=1))))
        dead = recorder(bench, params={"prompts": ["c"]})
        dead.checkpoint().put("0", Part(number=0.5))
        dead.fail(OutOfMemory("it did not fit"), None)

        assert recorder(other, params={"prompts": ["c"]}).checkpoint().take("0", Part) is None
        assert recorder(bench, params={"prompts": ["c"]}).checkpoint().take("0", Part) == Part(number=0.5)
