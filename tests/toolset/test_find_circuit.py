"""`find_circuit` against edge patching by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnterp_mcp.errors import Cancelled, InvalidRequest
from nnterp_mcp.experiments.circuits.edge_graph import make_edge_graph
from nnterp_mcp.experiments.circuits.edge_patching import make_edge_patcher
from nnterp_mcp.experiments.circuits.edge_scores import midpoints, score_edges
from nnterp_mcp.experiments.circuits.faithfulness import sizes_of
from nnterp_mcp.experiments.circuits.selection import as_mask, prune_edges, rank_edges
from nnterp_mcp.experiments.patching.corruption import pair_prompts
from nnterp_mcp.laboratory import Laboratory
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.pool.messages import Progress, Recorded
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from nnterp_mcp.toolset.find_circuit import stages
from nnterp_mcp.toolset.find_circuit.result import FindCircuitResult
from nnterp_mcp.toolset.find_circuit.run import run
from nnterp_mcp.toolset.verify_claim.result import VerifyClaimResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.recorder import Recorder
from nnterp_mcp.worker.workbench import Bench
from tests.recorded_runs import opened

CLEAN = [f"The capital of France is {word}" for word in ("a", "b", "c", "d")]
CALL = {
    "clean": CLEAN,
    "corrupted": {"replace": "France", "with": "Spain"},
    "targets": {"answer": {"id": 40}, "wrong": {"id": 77}},
    "steps": 3,
    "draws": 2,
}


def test_the_circuit_is_measured_on_prompts_that_did_not_choose_it(tiny: Callable[..., Path]) -> None:
    lab = Laboratory(tiny("llama"))
    found = lab.call("find_circuit", **CALL, edges=60)
    assert isinstance(found, FindCircuitResult)

    tokenizer = lab.bench.model.tokenizer
    graph = make_edge_graph(lab.bench.model)
    clean = encode_prompts(tokenizer, CLEAN, "it")
    corrupted = encode_prompts(tokenizer, [prompt.replace("France", "Spain") for prompt in CLEAN], "it")
    pairs = pair_prompts(clean, corrupted)
    patchers = [make_edge_patcher(graph, pair, "logit_difference", [[40], [77]]) for pair in pairs]
    scores = torch.stack([score_edges(patchers[at], midpoints(3)) for at in (0, 2)]).mean(0)
    order = rank_edges(graph, scores)
    circuit = prune_edges(graph, order[:60])
    held_out = [patchers[1], patchers[3]]
    values = [float(one.run(as_mask(graph, circuit)[None])) for one in held_out]
    gaps = [(one.clean_value, one.corrupted_value) for one in held_out]
    wanted = (sum(values) - sum(bad for _, bad in gaps)) / sum(good - bad for good, bad in gaps)

    chosen = found.chosen
    assert chosen is not None
    assert (found.scored, found.measured) == ([0, 2], [1, 3])
    assert [chosen.edges, len(found.edges), found.total] == [len(circuit), len(circuit), len(order)]
    assert chosen.faithfulness.mean == pytest.approx(wanted, abs=1e-4)
    assert len(chosen.randoms) == 2
    for edge, at in zip(found.edges, sorted(circuit, key=lambda edge: -abs(float(scores[edge]))), strict=True):
        assert [edge.sender, edge.receiver] == [str(graph.senders[at[0]]), str(graph.receivers[at[1]])]
        assert edge.score == pytest.approx(float(scores[at]), abs=1e-5)
        if edge.effect is not None:
            effect = sum(float(one.patch_edges([at])) for one in held_out) / 2
            assert edge.effect == pytest.approx(effect, abs=1e-5)
    assert sum(edge.effect is not None for edge in found.edges) == 20
    assert "on 2 held-out prompts. " in lab.show(found)
    assert len(lab.figure(found).panels) == 2


def test_edges_are_corrupted_by_other_prompts_alone() -> None:
    with pytest.raises(InvalidRequest, match="resample"):
        specs()["find_circuit"].parse(CALL | {"corrupted": {"ablate": "zero"}})


def test_parts_go_into_other_tools_and_the_size_is_chosen_on_the_prompts_that_chose_the_edges(
    tiny: Callable[..., Path],
) -> None:
    lab = Laboratory(tiny("llama"))
    found = lab.call("find_circuit", **CALL | {"steps": 1, "draws": 0})
    alone = lab.call("find_circuit", **CALL | {"clean": CLEAN[::2], "steps": 1, "draws": 0})
    assert isinstance(found, FindCircuitResult)
    assert isinstance(alone, FindCircuitResult)
    assert found.chosen is not None
    assert alone.chosen is not None
    assert found.chosen.edges == alone.chosen.edges

    cells = specs()["find_circuit"].digest(found).cells
    assert any(cell.startswith("mlps_output L") for cell in cells)
    given = {name: CALL[name] for name in ("clean", "corrupted", "targets")}
    claimed = lab.call("verify_claim", **given, claim=cells[:3], found_on="theory")
    assert isinstance(claimed, VerifyClaimResult)
    assert claimed.parts == cells[:3]


SHORT = CALL | {"steps": 1, "draws": 1}


def test_a_cancelled_call_is_readable_as_far_as_it_came_and_an_equal_one_continues(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench("tiny", Settings(runs=tmp_path))
    bench.place(StandardizedTransformer(str(tiny("llama"))))
    store, spec = RunStore(tmp_path), specs()["find_circuit"]
    params = spec.parse(SHORT)
    whole = run(bench, params, Job(1, lambda progress: None))
    last = 2 + len(sizes_of(whole.total)) + 1
    computed: list[int] = []
    compute = stages.Stages.compute
    monkeypatch.setattr(stages.Stages, "compute", lambda *asked: computed.append(asked[1]) or compute(*asked))

    def begin(stop_after: int) -> FindCircuitResult:
        """Runs it with a record until so many stages are done; what the record has of it then."""
        recorder = Recorder(
            store,
            lambda: bench.environment,
            Recorded(run=opened(store, tool="find_circuit", params=SHORT).id, queued=0),
        )

        def send(progress: Progress) -> None:
            if progress.message == f"{stop_after} of {last} stages":
                job.stop(Cancelled("cancelled"))

        job = Job(1, send, recorder)
        try:
            found = run(bench, params, job)
            recorder.finish(found)
        except Cancelled as error:
            recorder.fail(error, job.partial and job.partial())
        record = store.read(recorder.run_id)
        assert (record.state, record.partial) == (("done", False) if stop_after >= last else ("cancelled", True))
        assert "scores" in record.arrays
        return FindCircuitResult.model_validate_json(store.read_result(record))

    scored = begin(1)
    assert (scored.scored, scored.curve, scored.sizes_left) == ([0], [], last - 3)
    assert len(scored.edges) == 20
    assert "Edges are scored on 1 prompt; no circuit was measured." in spec.digest(scored).finding

    some = begin(last - 3)
    assert (some.scored, some.sizes_left) == ([0, 2], 2)
    assert 0 < len(some.curve) < len(whole.curve)
    assert some.curve == whole.curve[: len(some.curve)]
    assert all(edge.effect is None for edge in some.edges)
    assert some.under is None
    assert "The call ended early: 2 larger sizes of the curve are missing." in spec.digest(some).notes

    assert begin(last) == whole
    assert computed == list(range(last))
    assert not list(store.unfinished.iterdir())
