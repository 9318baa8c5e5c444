"""The tool `patch_activations`: what it says, how much, and what it refuses; its numbers are tested elsewhere."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.contract import Measured
from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import rounded
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.toolset.patch_activations import SPEC
from nnterp_mcp.toolset.patch_activations.result import GridColumn, PatchActivationsResult, PatchedCell, PatchedSet
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

TARGETS = {"answer": "Paris", "wrong": "Madrid"}
CLEAN, CORRUPTED = "The capital of France is", "The capital of Spain is"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("patching"))


def ask(bench: Bench, job: Job | None = None, **arguments: Any) -> PatchActivationsResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.patch_activations.run import run

    sent = SPEC.parse({"clean": CLEAN, "corrupted": CORRUPTED, "targets": TARGETS} | arguments)
    params = SPEC.params.model_validate(sent.model_dump(mode="json"))
    result = run(bench, params, job or Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


def test_the_grid_has_every_layer_and_position(bench: Bench) -> None:
    result = ask(bench)

    assert [(cell.layer, cell.column) for cell in result.cells] == [*product(range(4), range(6))]
    assert result.metric == "logit_difference"
    assert result.corrupted is not None
    assert [column.label for column in result.columns] == list("012345")
    assert (result.columns[4].clean, result.columns[4].corrupted) == (" France", " Spain")
    for cell in result.cells:
        assert cell.recovery is not None
        gap = result.clean.mean - result.corrupted.mean
        assert cell.metric.mean == pytest.approx(result.corrupted.mean + cell.recovery.mean * gap, abs=1e-4)
        assert (cell.effect == 0) == (cell.column < 4)
    last = [cell.recovery.mean for cell in result.cells if cell.layer == 3 and cell.recovery]
    assert last == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-4)


def test_the_sources_of_interventions_run_once_for_both_sides(bench: Bench) -> None:
    source = bench.model.tokenizer("Rome")["input_ids"]
    read: list[list[int]] = []
    hook = bench.model.module.register_forward_pre_hook(
        lambda module, args, kwargs: read.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    mean = {"op": "mean", "site": "mlps_output", "layers": 0, "over": ["Rome"], "over_positions": "last"}
    patched = {"op": "patch", "site": "mlps_output", "layers": 1, "positions": 1, "from": {"prompt": "Rome"}}
    ask(bench, layers=[2], interventions=[mean, patched])
    hook.remove()

    assert read.count(source) == 1


def test_prompts_may_be_made_by_replacing_words(bench: Bench) -> None:
    replaced = ask(bench, corrupted={"replace": "France", "with": "Spain"})

    assert replaced.cells == ask(bench).cells
    assert replaced.corruption == "'Spain' for 'France'"


def test_noise_has_as_many_draws_as_asked_for(bench: Bench) -> None:
    noise = {"noise": 2.0, "positions": {"text": " France"}, "samples": 3}
    result = ask(bench, corrupted=noise, targets={"answer": "Paris"}, layers=[0, 3])

    assert (result.draws, result.prompts, result.metric) == (3, 1, "log_probability")
    assert result.columns[4].corrupted is None
    assert result.clean.low == pytest.approx(result.clean.mean)
    assert result.corrupted is not None
    assert result.corrupted.low is not None
    assert result.corrupted.high is not None
    assert result.corrupted.low < result.corrupted.high


def test_several_prompts_have_targets_of_their_own_and_intervals(bench: Bench) -> None:
    swapped = {"answer": "Madrid", "wrong": "Paris"}
    one, other = (ask(bench, layers=1, clean=a, corrupted=b, targets=t) for a, b, t in
                  ((CLEAN, CORRUPTED, TARGETS), (CORRUPTED, CLEAN, swapped)))  # fmt: skip
    both = ask(bench, layers=1, clean=[CLEAN, CORRUPTED], corrupted=[CORRUPTED, CLEAN], targets=[TARGETS, swapped])

    assert both.prompts == 2
    for cell, first, second in zip(both.cells, one.cells, other.cells, strict=True):
        assert cell.metric.mean == pytest.approx((first.metric.mean + second.metric.mean) / 2, abs=1e-4)
        assert cell.metric.low == pytest.approx(min(first.metric.mean, second.metric.mean), abs=1e-4)


def test_heads_are_columns_and_their_site_goes_without_saying(bench: Bench) -> None:
    result = ask(bench, heads=[1, 3], layers=[0, 2])

    assert result.by_head
    assert [(cell.site, cell.layer, cell.column) for cell in result.cells] == [
        ("heads_output", layer, column) for layer, column in product([0, 2], [0, 1])
    ]
    assert [column.label for column in result.columns] == ["1", "3"]


def test_spans_of_unequal_length_are_patched_by_label(bench: Bench) -> None:
    city = {"clean": {"text": "France"}, "corrupted": {"text": "Polynesia"}}
    result = ask(bench, corrupted="The capital of Polynesia is", positions={"city": city, "end": "last"})

    assert [column.label for column in result.columns] == ["city", "end"]
    assert result.columns[0].clean == " France"
    assert result.columns[1].corrupted == " is"
    (last,) = [cell.recovery for cell in result.cells if (cell.layer, cell.column) == (3, 1)]
    assert last is not None
    assert last.mean == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_ablations_go_into_clean_runs(bench: Bench, kind: str) -> None:
    targets = [TARGETS, {"answer": "Madrid", "wrong": "Paris"}]
    more: dict[str, Any] = {"clean": [CLEAN, CORRUPTED], "corrupted": {"ablate": kind}, "targets": targets}
    result = ask(bench, sites="mlps_output", layers=1, **more)

    assert result.direction == "noising"
    assert (result.corrupted is None) == (kind != "resample")
    assert all((cell.recovery is None) == (kind != "resample") for cell in result.cells)
    assert any(abs(cell.effect) > 1e-3 for cell in result.cells)


def test_without_positions_a_part_is_ablated_as_a_whole_whatever_the_lengths(bench: Bench) -> None:
    import torch

    texts = [CLEAN, "The capital of Polynesia, far off, is"]
    result = ask(bench, clean=texts, corrupted={"ablate": "zero"}, sites="mlps_output", layers=[0, 1])
    assert [(cell.layer, cell.position) for cell in result.cells] == [(0, "all"), (1, "all")]

    model: Any = bench.model.module
    ids = [bench.model.tokenizer(text)["input_ids"] for text in texts]
    assert len(ids[0]) != len(ids[1])
    first: Any = lambda word: bench.model.tokenizer(word, add_special_tokens=False)["input_ids"][0]  # noqa: E731
    targets = [[first(name), first(f" {name}")] for name in TARGETS.values()]
    for cell in result.cells:
        hook = model.model.layers[cell.layer].mlp.register_forward_hook(lambda module, args, output: output * 0)
        with torch.no_grad():
            logits = [model(torch.tensor([one])).logits[0, -1] for one in ids]
        hook.remove()
        values = [float(one[targets[0]].logsumexp(0) - one[targets[1]].logsumexp(0)) for one in logits]
        assert cell.metric.mean == pytest.approx(sum(values) / 2, abs=1e-4)

    answer = SPEC.digest(result)
    assert "at mlps_output of layer" in answer.finding
    assert "at all positions" in answer.finding
    assert 'positions="0:" takes them one by one' in " ".join(answer.notes)
    by_one = ask(bench, corrupted={"ablate": "zero"}, sites="mlps_output", layers=1, positions="0:")
    assert [cell.position for cell in by_one.cells] == [0, 1, 2, 3, 4, 5]


def test_cells_go_by_the_names_of_the_answer(bench: Bench) -> None:
    from nnterp_mcp.runs.tables import ResultTables, encode_tables

    result = ask(bench, layers=[1, 3], positions=[4, -1])
    rows, _ = ResultTables(encode_tables(result, {})).page("cells", {})
    assert [(row["layer"], row["position"]) for row in rows] == [(1, 4), (1, 5), (3, 4), (3, 5)]
    assert [row["recovery"] for row in rows] == [cell.recovery and cell.recovery.mean for cell in result.cells]
    named = SPEC.digest(result).table
    assert {"layer", "position", "recovery"} <= set(named.columns) & set(rows[0])
    assert named.rows[0][named.columns.index("position")] in (4, 5)

    heads, _ = ResultTables(encode_tables(ask(bench, layers=1, heads=[1, 3]), {})).page("cells", {})
    assert [(row["position"], row["head"]) for row in heads] == [(None, 1), (None, 3)]


def test_paths_end_at_the_receivers(bench: Bench) -> None:
    direct = ask(bench, heads="all", receivers="logits")
    through = ask(bench, heads="all", receivers={"site": "queries", "layers": [2, 3], "heads": 1})

    assert direct.receivers == "the logits"
    assert through.receivers == "queries of layers 2, 3, head 1"
    assert any(cell.effect for cell in direct.cells if cell.layer == 3)
    assert not any(cell.effect for cell in through.cells if cell.layer == 3)
    assert any(abs(cell.effect) > 1e-5 for cell in through.cells if cell.layer < 2)


def test_the_control_is_the_strongest_cells_of_one_sign_and_twenty_random_sets(bench: Bench) -> None:
    result = ask(bench, heads="all", control=True)

    found = result.patched_set
    assert found is not None
    assert not found.named
    assert len(found.controls) == len(found.control_recoveries) == 20
    assert len(set(found.controls)) > 10
    assert result.corrupted is not None
    restoring = 1 if result.clean.mean > result.corrupted.mean else -1
    order = sorted((cell for cell in result.cells if cell.effect * restoring > 0), key=lambda cell: -abs(cell.effect))
    assert found.cells == [f"L{cell.layer}H{cell.head}" for cell in order[: len(found.cells)]]
    few = ask(bench, positions=[4, -1], layers=[1, 2], control=True).patched_set
    assert few is not None
    assert few.controls == []
    assert ask(bench, positions="last", layers=3, control=True).patched_set is None


def test_what_follows_by_construction_is_marked(bench: Bench) -> None:
    result = ask(bench, sites=["layers_input", "layers_output", "mlps_output"])
    marked = {(cell.site, cell.layer, cell.column) for cell in result.cells if cell.by_construction and cell.effect}

    assert marked == {("layers_input", 0, 4), ("layers_output", 3, 5)}
    together = ask(bench, positions={"all": "4:"}, sites="layers_output")
    assert all(cell.by_construction for cell in together.cells)
    assert "Every effect follows by construction" in SPEC.digest(together).finding


@pytest.mark.parametrize("kind", ["denoising", "noising", "zero", "mean"])
def test_a_named_set_is_measured_as_a_circuit(bench: Bench, kind: str) -> None:
    targets = [TARGETS, {"answer": "Madrid", "wrong": "Paris"}]
    more: dict[str, Any] = {"clean": [CLEAN, CORRUPTED], "targets": targets, "layers": [1, 2]}
    if kind in ("zero", "mean"):
        more["corrupted"] = {"ablate": kind}
    else:
        more |= {"corrupted": [CORRUPTED, CLEAN], "direction": kind}
    named = ["L1H0", {"site": "heads_output", "layers": 2, "heads": [1, 3]}]
    result = ask(bench, cells=named, complement=True, **more)

    found = result.patched_set
    assert found is not None
    assert found.named
    assert found.cells == ["L1H0", "L2H1", "L2H3"]
    assert result.cells == []
    circuit = found.circuit
    assert circuit is not None
    assert circuit.total == 8

    def metric(heads: dict[int, list[int]]) -> float:
        """The metric with some heads intact, by plain hooks."""
        return mean_metric(bench, kind, heads)

    every: dict[int, list[int]] = {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}
    intact, none = metric(every), metric({1: [], 2: []})
    assert [circuit.intact.mean, circuit.none.mean] == pytest.approx([intact, none], abs=1e-4)

    def share(heads: dict[int, list[int]]) -> float:
        return (metric(heads) - none) / (intact - none)

    whole = share({1: [0], 2: [1, 3]})
    assert circuit.faithfulness.mean == pytest.approx(whole, abs=2e-3)
    assert circuit.completeness.mean == pytest.approx(share({1: [1, 2, 3], 2: [0, 2]}), abs=2e-3)
    without = [share({1: [], 2: [1, 3]}), share({1: [0], 2: [3]}), share({1: [0], 2: [1]})]
    assert [member.loss.mean for member in result.members] == pytest.approx([whole - one for one in without], abs=3e-3)
    text = SPEC.digest(result).text()
    assert "Faithfulness" in text
    assert "Minimality" in text


def mean_metric(bench: Bench, kind: str, intact: dict[int, list[int]]) -> float:
    """The mean logit difference of both prompts with some heads of two layers intact and all others replaced."""
    import torch

    model: Any = bench.model.module
    ids = [torch.tensor([bench.model.tokenizer(text)["input_ids"]]) for text in (CLEAN, CORRUPTED)]
    first: Any = lambda word: bench.model.tokenizer(word, add_special_tokens=False)["input_ids"][0]  # noqa: E731
    answers = [[first(name), first(f" {name}")] for name in TARGETS.values()]

    def run(given: Any, change: dict[int, Any]) -> tuple[Any, dict[int, Any]]:
        seen: dict[int, Any] = {}

        def hook(layer: int) -> Any:
            def edit(module: Any, args: Any) -> Any:
                seen[layer] = args[0].clone()
                return None if layer not in change else (change[layer](args[0].clone()),)

            return model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(edit)

        hooks = [hook(layer) for layer in (1, 2)]
        with torch.no_grad():
            logits = model(given).logits[0, -1]
        for one in hooks:
            one.remove()
        return logits, seen

    states = [run(given, {})[1] for given in ids]
    width = states[0][1].shape[-1] // 4
    values: list[float] = []
    for at in (0, 1):
        base, other = (1 - at, at) if kind == "denoising" else (at, 1 - at)

        def change(layer: int, other: int = other) -> Any:
            def edit(own: Any) -> Any:
                means = (states[0][layer] + states[1][layer]) / 2
                new = {"zero": torch.zeros_like(own), "mean": means}.get(kind, states[other][layer])
                for head in range(4):
                    if (head in intact[layer]) == (kind == "denoising"):
                        own[..., head * width : (head + 1) * width] = new[..., head * width : (head + 1) * width]
                return own

            return edit

        logits, _ = run(ids[base], {layer: change(layer) for layer in (1, 2)})
        answer, wrong = answers if at == 0 else answers[::-1]
        values.append(float(logits[answer].logsumexp(0) - logits[wrong].logsumexp(0)))
    return sum(values) / 2


def test_cells_outside_the_grid_are_refused(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match=r"not all in the grid"):
        ask(bench, cells=["L1H9"])
    with pytest.raises(InvalidRequest, match=r"complement goes with cells"):
        ask(bench, complement=True)
    with pytest.raises(InvalidRequest, match=r'a cell is a head such as "L23H4"'):
        ask(bench, cells=["H4"])


def test_paths_through_mlps_and_the_residual_stream_alone_are_told_apart(bench: Bench) -> None:
    direct = ask(bench, heads="all", receivers="logits")
    residual = ask(bench, heads="all", receivers="logits", paths="residual")

    assert [cell.effect for cell in direct.cells] != [cell.effect for cell in residual.cells]
    assert "through direct paths to the logits (attention frozen, MLPs recomputed)" in SPEC.digest(direct).finding
    assert "the residual stream alone to the logits (attention and MLPs frozen)" in SPEC.digest(residual).finding


def test_means_may_be_over_other_prompts(bench: Bench) -> None:
    over = [CORRUPTED, CORRUPTED]
    found = ask(bench, corrupted={"ablate": "mean", "over": over}, sites="mlps_output", layers=[1])

    assert found.corruption == "Position-wise means over 2 other prompts"
    assert found.cells[0].effect
    with pytest.raises(InvalidRequest, match="over goes with"):
        ask(bench, corrupted={"ablate": "zero", "over": over})


def test_a_long_grid_is_refused_by_its_time_and_resumed_by_groups(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnterp_mcp.experiments.patching import grid_work

    whole = ask(bench)
    monkeypatch.setattr(grid_work, "_GROUP", 8)
    for cell, other in zip(ask(bench).cells, whole.cells, strict=True):
        assert cell.metric.mean == pytest.approx(other.metric.mean, abs=1e-5)
    job = Job(1, lambda progress: None)
    now = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(grid_work.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(grid_work.Pace.__init__, "__defaults__", (grid_work.time.monotonic,))
    with pytest.raises(LimitExceeded, match="the rest of this grid would take about"):
        ask(bench, job)
    assert job.partial is not None
    partial = job.partial()
    assert isinstance(partial, PatchActivationsResult)
    assert 0 < len(partial.cells) < len(whole.cells)
    known = {(cell.layer, cell.column): cell.metric.mean for cell in whole.cells}
    for cell in partial.cells:
        assert cell.metric.mean == pytest.approx(known[cell.layer, cell.column], abs=1e-5)


def test_a_grid_in_groups_runs_its_prompts_twice_at_most_and_tells_the_time_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnterp_mcp.experiments.patching import grid_work, run_cache

    made: list[int] = []
    run_pair = run_cache._run_pair
    monkeypatch.setattr(run_cache, "_run_pair", lambda *asked: made.append(1) or run_pair(*asked))
    monkeypatch.setattr(grid_work, "_GROUP", 8)
    now = iter(range(0, 10**9, 10))
    monkeypatch.setattr(grid_work.time, "monotonic", lambda: float(next(now)))
    said: list[str] = []
    ask(bench, Job(1, lambda progress: said.append(progress.message)))

    assert [message for message in said if re.match(r"\d+ of \d+ cells, about [\d.]+ s left$", message)]
    assert len(made) <= 2


def test_windows_and_edits_of_both_runs_are_named(bench: Bench) -> None:
    edit = {"op": "zero", "site": "mlps_output", "layers": 0}
    result = ask(bench, window=3, sites="mlps_output", interventions=[edit], control=True)
    plain = ask(bench, sites="mlps_output", control=True)

    assert (result.window, result.in_force) == (3, ["zero at mlps_output, layer 0, all positions, every step"])
    assert result.clean.mean != plain.clean.mean
    assert result.cells[0].metric.mean != plain.cells[0].metric.mean
    answer = SPEC.digest(result)
    assert "Active interventions: zero at mlps_output, layer 0, all positions, every step." in answer.notes
    assert "A cell stands for 3 adjacent layers about its own, fewer at either end." in answer.notes
    assert "at mlps_output of 3 layers about layer " in answer.finding
    with pytest.raises(InvalidRequest, match="a window of 3 layers cannot be patched by head"):
        ask(bench, window=3, heads="all")
    with pytest.raises(InvalidRequest, match="France"):
        ask(bench, interventions=[edit | {"positions": {"text": "France"}}])


def test_equal_prompts_change_nothing(bench: Bench) -> None:
    answer = SPEC.digest(ask(bench, corrupted=CLEAN))

    assert "No cell changes anything" in answer.finding
    assert answer.table.rows == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corrupted": {"noise": -1, "positions": 1}}, "noise: input should be greater than 0"),
        ({"corrupted": {"blur": 1}}, 'corrupted must be prompts, {"replace": …, "with": …}'),
        ({"corrupted": []}, "corrupted is empty: give at least one prompt"),
        ({"sites": "keyz"}, "sites must be some of layers_input, queries"),
        ({"positions": {}}, "positions is empty"),
        ({"targets": []}, "targets is empty: leave it out, or give one mapping"),
        ({"targets": [{"a": "b"}, {}]}, "targets must have as many categories for each prompt"),
        (
            {"receivers": {"site": "layers_output", "layers": 1}},
            "paths end at queries, keys, values, heads_output, attentions_output, mlps_output, not at layers_output",
        ),
        ({"direction": "both"}, "direction: input should be 'denoising' or 'noising'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SPEC.parse({"clean": "We", "corrupted": "You"} | arguments)


def test_refusals_in_the_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="1 clean prompts and 2 corrupted ones came"):
        ask(bench, corrupted=[CORRUPTED, CLEAN])
    with pytest.raises(InvalidRequest, match="3 targets came for 1 prompt"):
        ask(bench, targets=[TARGETS] * 3)
    with pytest.raises(InvalidRequest, match="'Rome' to replace"):
        ask(bench, corrupted={"replace": "Rome", "with": "Oslo"})
    with pytest.raises(InvalidRequest, match="the metric logit_difference needs 2 target categories, and 0 came"):
        ask(bench, targets={}, metric="logit_difference")
    monkeypatch.setattr("nnterp_mcp.toolset.patch_activations.run._MOST_RUNS", 23)
    with pytest.raises(LimitExceeded, match=r"24 runs .* and at most 23"):
        ask(bench)


def test_progress_grows_and_a_cancelled_call_stops(bench: Bench) -> None:
    told: list[Progress] = []
    ask(bench, Job(1, told.append), clean=[CLEAN] * 2, corrupted=[CORRUPTED] * 2, heads="all", control=True)

    assert len(told) >= 4
    assert [progress.done for progress in told] == sorted({progress.done for progress in told})
    job = Job(1, lambda progress: job.stop(Cancelled("the call was cancelled")))
    with pytest.raises(Cancelled):
        ask(bench, job, clean=[CLEAN] * 2, corrupted=[CORRUPTED] * 2)


def made_result(
    layers: int,
    columns: int,
    sites: int = 1,
    *,
    by_head: bool = False,
    prompts: int = 1,
    direction: str = "denoising",
    ablated: bool = False,
    control: bool = False,
    receivers: str | None = None,
) -> PatchActivationsResult:
    """A result with wide cells, for measuring answers without a model."""
    interval = prompts > 1
    sign = 1 if direction == "denoising" else -1

    def measured(value: float) -> Measured:
        return Measured(mean=value, low=value - 0.12345, high=value + 0.12345) if interval else Measured(mean=value)

    cells = [
        PatchedCell(
            site=("attentions_output", "mlps_output", "layers_output", "heads_output")[site],
            layer=layer,
            column=column,
            metric=measured(-3.456 + sign * shift * 10),
            recovery=None if ablated else measured((sign < 0) + sign * shift),
            effect=sign * shift * 10,
        )
        for site, layer, column in product(range(sites), range(layers), range(columns))
        for shift in [round(((site * 7 + layer * 13 + column * 29) % 97) / 97, 4)]
    ]
    labels = [
        GridColumn(label=str(i))
        if by_head
        else GridColumn(label=str(i), clean=" Liechtenstein", corrupted=" Constantinople")
        for i in range(columns)
    ]
    return PatchActivationsResult(
        model="smollm2-135m",
        direction=direction,
        metric="logit_difference",
        corruption="Zeros" if ablated else "corrupted prompts",
        receivers=receivers,
        prompts=prompts,
        draws=1,
        clean=measured(6.54321),
        corrupted=None if ablated else measured(-3.456),
        by_head=by_head,
        columns=labels,
        categories={"answer": [" Paris"], "wrong": [" Madrid"]},
        shared={},
        cells=cells,
        patched_set=PatchedSet(
            named=False,
            cells=["L0H3", "L2H2", "L1H2", "L0H2", "L2H1"],
            metric=measured(-5.0 if ablated else 5.0),
            recovery=None if ablated else measured(0.87),
            matched=True,
            controls=[(6.0 if ablated else -3.0) + 0.01 * i for i in range(20)],
            control_recoveries=[] if ablated else [0.01 * i for i in range(20)],
        )
        if control
        else None,
    )


CASES = {
    "positions": made_result(3, 2),
    "noising": made_result(3, 2, sites=2, direction="noising"),
    "heads": made_result(3, 4, by_head=True, control=True),
    "paths": made_result(2, 2, by_head=True, receivers="queries of layer 9, head 6"),
    "prompts": made_result(2, 3, prompts=12, control=True),
    "zeros": made_result(2, 2, ablated=True, direction="noising", control=True),
}


@pytest.mark.parametrize("case", list(CASES))
def test_says(snapshot: SnapshotAssertion, case: str) -> None:
    assert SPEC.digest(CASES[case]).text() == snapshot


def test_an_effect_within_its_control_is_said_to_be_none() -> None:
    result = made_result(3, 4, by_head=True, control=True)
    assert result.patched_set is not None
    result.patched_set.metric = Measured(mean=-2.9)

    assert "It does not exceed its control: 10 of 20 random sets" in SPEC.digest(result).finding


def test_a_small_gap_and_a_wrong_sign_are_said() -> None:
    result = made_result(1, 2)
    result.corrupted = Measured(mean=result.clean.mean + 0.05)
    notes = SPEC.digest(result).notes

    assert any("differ by 0.05 only" in note for note in notes)
    assert any("favour the answer less than the corrupted ones" in note for note in notes)


def test_both_channels_say_the_same() -> None:
    answer = SPEC.digest(CASES["prompts"])
    said = answer.text()

    assert answer.finding in said
    assert all(note in said for note in answer.notes)
    assert answer.profile is not None
    tables = len(answer.table.rows) + len(answer.profile.rows)
    assert len(said.split("\n")) == 4 + tables + len(answer.notes)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "result",
    [
        made_result(32, 12),
        made_result(32, 40, sites=4, prompts=20, control=True),
        made_result(32, 32, by_head=True, prompts=20, control=True),
        made_result(32, 12, sites=3, direction="noising", ablated=True, control=True),
    ],
    ids=["positions", "sites", "heads", "zeros"],
)
def test_answers_are_small(smollm2_folder: Path, result: PatchActivationsResult) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    answer = SPEC.digest(result)
    structured = json.dumps(rounded(answer.structured()), ensure_ascii=False)

    assert answer.truncated
    assert 3 <= len(answer.table.rows) <= 6
    assert answer.profile is not None
    assert len(answer.profile.rows) == 32
    assert len(tokenizer(answer.text())["input_ids"]) <= 1000
    assert len(tokenizer(structured)["input_ids"]) <= 1000
