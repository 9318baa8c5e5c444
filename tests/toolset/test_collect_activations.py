"""The tool `collect_activations`: what it keeps, what it says of it, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.cancellation import cancellable
from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded, Unsupported
from nnterp_mcp.formatting import rounded
from nnterp_mcp.pool.messages import Progress, Recorded
from nnterp_mcp.request.arguments import MOST_GROUPS
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset.collect_activations import SPEC
from nnterp_mcp.toolset.collect_activations.result import (
    CollectActivationsResult,
    CollectedLayer,
    CollectedPrompt,
    CollectedRow,
    GroupLength,
    GroupsApart,
)
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.recorder import Recorder
from nnterp_mcp.worker.workbench import Bench
from tests.recorded_runs import opened
from tests.toolset.test_make_vector import GRIEF, JOY, make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

GROUPS = {"joy": JOY, "grief": GRIEF}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("collect"))


@pytest.fixture(scope="module")
def plain() -> Any:
    from nnterp_mcp.verification.tiny import tiny_model
    from tests.engine.plain import FAMILIES, Plain

    return Plain(tiny_model("llama"), FAMILIES["llama"])


def collect(
    bench: Bench, send: Callable[[Progress], None] = lambda progress: None, job: Job | None = None, **arguments: Any
) -> tuple[str, CollectActivationsResult]:
    """Runs the tool as a worker does, the parameters sent over the wire and the run recorded; returns the run's id."""
    from nnterp_mcp.toolset.collect_activations.run import run

    sent = SPEC.parse({"prompts": GROUPS} | arguments).model_dump(mode="json")
    store = RunStore(bench.settings.runs)
    record = opened(store, "collect_activations", params=sent)
    job = job or Job(1, send)
    job.recorder = Recorder(store, lambda: bench.environment, Recorded(run=record.id, queued=0.0))
    try:
        result = run(bench, SPEC.params.model_validate(sent), job)
    except Cancelled as error:
        assert job.partial is not None
        job.recorder.fail(error, job.partial())
        raise
    assert job.recorder.finish(result) == []
    return record.id, SPEC.result.model_validate_json(result.model_dump_json())


def states_of(bench: Bench, run_id: str, name: str = "states") -> np.ndarray:
    store = RunStore(bench.settings.runs)
    card = store.read(run_id).arrays[name]
    array = store.read_array(run_id, name, tuple(slice(None) for _ in card.shape))
    assert list(array.shape) == card.shape == [len(labels) for labels in card.axes.values()]
    return array


def ids_of(bench: Bench, prompt: str) -> list[int]:
    return bench.model.tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize("site", ["layers_output", "heads_output", "mlps_output"])
def test_the_states_on_disk_are_those_of_plain_hooks(bench: Bench, plain: Any, site: str) -> None:
    run_id, result = collect(bench, site=site, layers=[1, 3], positions="all")
    states = states_of(bench, run_id)
    prompts = [*JOY, *GRIEF]

    assert [row.row for row in result.rows] == list(range(sum(len(ids_of(bench, prompt)) for prompt in prompts)))
    assert result.bytes == states.nbytes
    for row, state in zip(result.rows, states, strict=True):
        ids = ids_of(bench, prompts[row.prompt])
        assert row.token == bench.model.tokenizer.decode([ids[row.position or 0]])
        for place, layer in enumerate(result.layers):
            assert np.allclose(state[place], plain.read(ids, site, layer)[row.position].numpy(), atol=1e-5)


def test_the_summaries_are_those_of_numpy_on_states_of_plain_hooks(bench: Bench, plain: Any) -> None:
    run_id, result = collect(bench, positions=":4", pool="mean")

    assert [prompt.group for prompt in result.prompts] == ["joy"] * 3 + ["grief"] * 3
    assert [row.position for row in result.rows] == [None] * 6
    for summary in result.summaries:
        states = np.stack(
            [plain.read(ids_of(bench, p), "layers_output", summary.layer)[:4].mean(0) for p in [*JOY, *GRIEF]]
        ).astype(np.float64)
        norms = np.linalg.norm(states, axis=1)
        joy, grief = states[:3].mean(0), states[3:].mean(0)
        (pair,) = summary.pairs
        expected = [norms[:3].mean(), norms[:3].std(ddof=1), norms[3:].mean(), norms[3:].std(ddof=1)]
        assert [n for group in summary.groups for n in (group.norm, group.deviation)] == pytest.approx(expected, 1e-5)
        assert pair.gap == pytest.approx(np.linalg.norm(joy - grief) / norms.mean(), abs=1e-5)
        assert pair.cosine == pytest.approx(joy @ grief / np.linalg.norm(joy) / np.linalg.norm(grief), abs=1e-5)
        values, vectors = np.linalg.eigh(np.cov(states.T))
        assert summary.explained == pytest.approx((values[::-1] / values.sum())[:3], abs=1e-5)
        kept = states_of(bench, run_id, "components")[summary.layer]
        assert np.abs((kept * vectors.T[::-1][:3]).sum(1)) == pytest.approx(1, abs=1e-4)


def test_one_list_is_one_group(bench: Bench) -> None:
    _, result = collect(bench, prompts=JOY, site="token_embeddings", pool="last", positions="all")

    assert (result.groups, result.layers) == (["prompts"], [None])
    assert result.summaries[0].pairs == []
    assert SPEC.digest(result).text().startswith("3 states of 3 prompts (token_embeddings) of tiny are kept in ")


def test_states_that_do_not_differ_keep_no_components_and_readable_numbers(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    zero = [{"op": "zero", "layers": "all", "site": "layers_output"}]
    runs = [collect(bench, prompts="one"), collect(bench, interventions=zero)]

    for run_id, result in runs:
        record = RunStore(bench.settings.runs).read(run_id)
        assert set(record.arrays) == {"states"}
        assert all(summary.explained == [] for summary in result.summaries)
    (pair,) = runs[1][1].summaries[0].pairs
    assert (pair.gap, pair.shuffled_gap) == (0, 0)


def test_many_groups_are_not_compared_in_pairs(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.settings = bench.settings.model_copy(update={"max_prompts": MOST_GROUPS})
    groups = {f"group {number}": [f"a {number}"] for number in range(MOST_GROUPS)}
    begun = time.monotonic()
    _, result = collect(bench, prompts=groups)

    assert time.monotonic() - begun < 20
    assert all(len(summary.groups) == MOST_GROUPS and summary.pairs == [] for summary in result.summaries)
    said = SPEC.digest(result).text()
    assert f"{MOST_GROUPS} groups are too many to compare in pairs: give fewer for cosine and gap." in said
    assert "random gap" not in said


def test_a_cancel_is_noticed_between_groups(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.settings = bench.settings.model_copy(update={"max_prompts": 240})
    groups = {f"group {number}": [f"a {number}"] for number in range(24)}
    asked: list[int] = []
    job = Job(1, lambda progress: None)
    check = job.check

    def count() -> None:
        asked.append(1)
        check()

    with cancellable(count):
        collect(bench, prompts=groups, job=job)
    assert len(asked) > 4 * 24 * 23 // 2


def test_a_stopped_run_keeps_the_rows_that_it_had(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.settings = bench.settings.model_copy(update={"batch_tokens": 1})
    job = Job(1, lambda progress: job.stop(Cancelled("stopped")) if progress.done == 2 else None)
    with pytest.raises(Cancelled):
        collect(bench, job=job)
    store = RunStore(bench.settings.runs)
    (record,) = store.latest(1)
    result = SPEC.result.model_validate_json(store.read_result(record))

    assert (record.partial, record.state) == (True, "cancelled")
    assert (len(result.rows), result.asked, result.summaries) == (3, 6, [])
    read = ~np.isnan(states_of(bench, record.id)).any((1, 2))
    assert np.flatnonzero(read).tolist() == [row.row for row in result.rows]
    assert "3 rows of 6 were not read: NaN." in SPEC.digest(result).text()


def test_what_is_too_large_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.settings = bench.settings.model_copy(update={"max_states_bytes": 1000})
    width = bench.model.hidden_size

    with pytest.raises(LimitExceeded, match=rf"\(6 rows × 4 layers × {width} × 4 bytes\), and this server allows 1 kB"):
        collect(bench)
    assert list(bench.settings.runs.glob("*/*states*")) == []


def patched(bench: Bench, texts: list[str], **operation: Any) -> Any:
    """The distributions after prompts under a patch."""
    from nnterp_mcp.engine.forward import forward
    from nnterp_mcp.model.text.tokenization import pad_batch
    from nnterp_mcp.request.operations.request import parse_operation

    encoded = bench.encode(texts)
    made = bench.plan([parse_operation({"op": "patch"} | operation)], encoded)
    batch = pad_batch(encoded, bench.model.pad_id, bench.model.device)
    ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
    logits = forward(bench.model, batch, made, logits=ends).logits
    return logits[[prompt.index for prompt in batch.prompts].index(0)].double().softmax(-1)


@pytest.mark.parametrize("site", ["layers_output", "heads_output", "keys"])
def test_a_patch_puts_in_what_a_run_kept(bench: Bench, plain: Any, site: str) -> None:
    run_id, result = collect(bench, site=site, positions="all", layers=[0, 2])
    prompt, heads = "The capital of France is", None if site == "layers_output" else [1]
    donor = plain.read(ids_of(bench, GRIEF[0]), site, 2)[-2]

    def put(states: Any) -> None:
        if heads is None:
            states[3] = donor
        else:
            shared = plain.heads // result.shape[0]
            states[3, shared : 2 * shared] = donor[shared : 2 * shared]

    found = patched(
        bench,
        [prompt, "Rome"],
        site=site,
        layers=0,
        positions=3,
        heads=heads,
        prompts=0,
        **{"from": {"run": run_id, "prompt": 3, "position": -2, "layer": 2}},
    )
    expected = plain.probabilities(ids_of(bench, prompt), {(site, 0): put})
    assert abs(found - expected).max() < 1e-6
    assert abs(found - plain.probabilities(ids_of(bench, prompt), {})).max() > 1e-6


def test_a_patch_takes_the_only_state_of_the_prompt_of_the_same_number(bench: Bench, plain: Any) -> None:
    run_id, _ = collect(bench, pool="mean", positions="1:4")
    donor = plain.read(ids_of(bench, JOY[0]), "layers_output", 1)[1:4].mean(0)

    def put(states: Any) -> None:
        states[1:3] = donor

    found = patched(bench, ["The capital of Italy"], layers=1, positions="1:3", **{"from": {"run": run_id}})
    expected = plain.probabilities(ids_of(bench, "The capital of Italy"), {("layers_output", 1): put})
    assert abs(found - expected).max() < 1e-6


def test_patches_that_a_run_cannot_give_are_refused(bench: Bench, tmp_path: Path) -> None:
    last, _ = collect(bench, layers=[1])
    pooled, _ = collect(bench, pool="mean", positions=":2", layers=[1])

    def refusal(run: str, site: str = "layers_output", layers: int = 1, on: Bench = bench, **source: Any) -> str:
        with pytest.raises(InvalidRequest) as raised:
            patched(on, [JOY[0]], site=site, layers=layers, positions=-1, **{"from": {"run": run, **source}})
        return raised.value.message

    assert refusal(last, prompt=9).startswith(f"prompt 9 does not exist: {last} has prompts 0 to 5")
    assert f"{last} kept no state of prompt 0 at position 0: it has " in refusal(last, position=0)
    assert refusal(last, layers=2) == f"{last} kept no states of layer 2: it has layers 1."
    assert refusal(last, site="mlps_output").startswith(f"{last} kept states at layers_output, and the patch goes to")
    assert refusal(pooled, position=0).startswith(f"{pooled} kept the mean over positions of prompt 0")
    assert "from.prompt must be the index of a prompt of from.run" in refusal(last, prompt="a text")
    assert "there is no run 'collect_activations-aaaaaa'" in refusal("collect_activations-aaaaaa")
    other = opened(RunStore(bench.settings.runs), "logit_lens").id
    assert refusal(other) == f"{other} is a run of logit_lens that is running, and holds no states."
    stranger = make_bench(tmp_path, seed=1)
    stranger.settings = stranger.settings.model_copy(update={"runs": bench.settings.runs})
    assert f"the states of {last} do not belong to tiny-1 " in refusal(last, on=stranger)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": {}}, "groups must map names to prompts, not {}"),
        ({"prompts": {"a": []}}, "group 'a': prompts is empty"),
        ({"prompts": {"a": 3}}, "group 'a': prompts must be a string"),
        ({"pool": "max"}, "pool: input should be 'none', 'mean' or 'last', not 'max'"),
        ({"site": "residual"}, "site: input should be 'token_embeddings', "),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SPEC.parse({"prompts": GROUPS} | arguments)


def test_refusals_in_the_worker(bench: Bench) -> None:
    with pytest.raises(Unsupported, match="attention_probs keeps them"):
        collect(bench, site="attention_probabilities")
    with pytest.raises(InvalidRequest, match="layer 9 does not exist"):
        collect(bench, layers=9)


def made_result(layers: int = 32, **changes: Any) -> CollectActivationsResult:
    summaries = [
        CollectedLayer(
            layer=layer,
            groups=[
                GroupLength(group=name, norm=45.67 + layer + at, deviation=3.21)
                for at, name in enumerate(("positive", "negative"))
            ],
            pairs=[
                GroupsApart(
                    first="positive",
                    second="negative",
                    cosine=0.987 - layer / 100,
                    shuffled=0.991,
                    gap=0.123 + layer / 100,
                    shuffled_gap=0.0789,
                )
            ],
            explained=[0.345, 0.123, 0.0876],
        )
        for layer in range(layers)
    ]
    prompts = [CollectedPrompt(group=name, text="I won", tokens=3) for name in ("positive", "negative")] * 20
    fields: dict[str, Any] = {
        "model": "smollm2-135m",
        "site": "layers_output",
        "layers": list(range(layers)),
        "shape": [576],
        "pool": "none",
        "groups": ["positive", "negative"],
        "interventions": [],
        "prompts": prompts,
        "rows": [CollectedRow(row=at, prompt=at, position=2, token=" won") for at in range(40)],
        "asked": 40,
        "bytes": 40 * layers * 576 * 4,
        "fitted": 40,
        "summaries": summaries,
    }
    return CollectActivationsResult.model_validate(fields | changes)


@pytest.mark.parametrize("case", ["groups", "fitted", "few"])
def test_says(snapshot: SnapshotAssertion, case: str) -> None:
    few = [CollectedPrompt(group=name, text="I won", tokens=3) for name in ("positive", "negative")]
    changes: dict[str, dict[str, Any]] = {
        "groups": {},
        "fitted": {"fitted": 30, "interventions": ["zero at mlps_output of layer 3"]},
        "few": {"prompts": few},
    }
    assert SPEC.digest(made_result(**changes[case])).text() == snapshot


@pytest.mark.smollm2
def test_answers_are_small(count_tokens: Callable[[object], int]) -> None:
    for layers in (1, 32, 80):
        answer = SPEC.digest(made_result(layers))
        assert count_tokens(answer.text()) <= 900
        assert count_tokens(rounded(answer.structured())) <= 1000
