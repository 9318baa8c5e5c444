"""The tool `verify_claim`: what it leaves out, says and refuses; its numbers are tested with the experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nnterp_mcp.errors import Cancelled, InvalidRequest
from nnterp_mcp.pool.messages import Progress, Recorded
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset.verify_claim import SPEC
from nnterp_mcp.toolset.verify_claim.result import VerifyClaimResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.recorder import Recorder
from nnterp_mcp.worker.workbench import Bench
from tests.dictionaries import write
from tests.recorded_runs import opened
from tests.toolset.test_dictionary_tools import load
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

CLEAN = [f"The {word} of France is" for word in ("capital", "king", "people", "river", "food")]
CALL: dict[str, Any] = {
    "claim": ["L1H2", "L2H0"],
    "clean": CLEAN,
    "corrupted": {"replace": "France", "with": "Spain"},
    "targets": {"answer": "Paris", "wrong": "Madrid"},
    "found_on": ["theory"],
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("claims"))


def ask(bench: Bench, job: Job | None = None, **arguments: Any) -> VerifyClaimResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.verify_claim.run import run

    params = SPEC.params.model_validate(SPEC.parse(CALL | arguments).model_dump(mode="json"))
    result = run(bench, params, job or Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


@pytest.fixture(scope="module")
def usual(bench: Bench) -> tuple[VerifyClaimResult, list[Progress]]:
    """The result of the usual call, and what it said on the way."""
    said: list[Progress] = []
    return ask(bench, Job(1, said.append)), said


def test_a_claim_is_tested_against_matched_random_components(usual: tuple[VerifyClaimResult, list[Progress]]) -> None:
    result, said = usual
    answer = SPEC.digest(result)

    assert [one.criterion for one in result.criteria] == ["necessity", "sufficiency", "dose response"]
    assert [one.decides for one in result.criteria] == [True, True, True]
    assert len(result.nulls) == 39
    assert all(len(null.component.split(", ")) == 2 for null in result.nulls)
    assert [dose.strength for dose in result.doses] == [0.25, 0.5, 0.75, 1.0]
    assert result.runs == 5 * (40 * 3 + 2)
    assert said[0].message.startswith(f"{result.runs} runs, about ")
    assert said[0].done == 0
    assert answer.finding.startswith(f"{result.outcome.capitalize()}: L1H2, L2H0 of tiny drive")
    assert any("mean ablation: the clean prompts are not equally long" in note for note in answer.notes)


def test_effects_are_those_of_patch_activations(bench: Bench, usual: tuple[VerifyClaimResult, list[Progress]]) -> None:
    from tests.toolset.test_patch_activations import ask as patch

    result, _ = usual
    pairs = {name: CALL[name] for name in ("clean", "corrupted", "targets")}
    spans = {"all": {"clean": "all", "corrupted": "all"}}
    for name, direction in (("necessity", "noising"), ("sufficiency", "denoising")):
        found = patch(bench, **pairs, cells=CALL["claim"], heads="all", positions=spans, direction=direction)
        assert found.patched_set is not None
        assert found.patched_set.recovery is not None
        recovery = found.patched_set.recovery.mean
        effect = next(one.effect.mean for one in result.criteria if one.criterion == name)
        assert effect == pytest.approx(1 - recovery if name == "necessity" else recovery, abs=1e-4)


def test_prompts_that_found_the_claim_are_left_out(bench: Bench) -> None:
    result = ask(bench, found_on=[CLEAN[1], "The king of Spain is"])

    assert [prompt.prompt for prompt in result.prompts] == [0, 2, 3, 4]
    assert result.left_out == 1


def test_no_prompt_left_leaves_the_claim_undecided(bench: Bench) -> None:
    result = ask(bench, found_on=CLEAN)

    assert result.outcome == "inconclusive"
    assert result.reasons[0].startswith("No prompt is left")
    assert "Inconclusive" in SPEC.digest(result).finding


def test_the_prompts_of_a_run_that_found_the_claim_are_left_out(bench: Bench) -> None:
    from nnterp_mcp.runs.records import Owner, RunRecord
    from nnterp_mcp.runs.store import RunStore, now

    def describe(run_id: str) -> RunRecord:
        params = {"clean": CLEAN[:2], "cells": ["L1H2"]}
        return RunRecord(
            id=run_id,
            tool="patch_activations",
            model="tiny",
            request={},
            params=params,
            opened=now(),
            owner=Owner.this(),
        )

    made = RunStore(bench.settings.runs).open("patch_activations", describe)

    assert [prompt.prompt for prompt in ask(bench, found_on=[made.id]).prompts] == [2, 3, 4]


def test_control_prompts_and_mean_ablation_need_equal_lengths(bench: Bench) -> None:
    clean = [f"The capital of France {word}" for word in ("is", "and", "of", "that")]
    result = ask(bench, clean=clean, control_prompts=["The France is", "The Paris is"])

    assert [one.criterion for one in result.criteria] == [
        "necessity", "mean ablation", "sufficiency", "dose response", "specificity"
    ]  # fmt: skip
    assert result.criteria[-1].decides
    assert not result.criteria[1].decides


def test_a_direction_is_tested_against_random_ones(bench: Bench) -> None:
    import torch

    width = bench.model.hidden_size
    direction = torch.randn(width, generator=torch.Generator().manual_seed(5)).tolist()
    found = ask(bench, claim={"vector": direction, "layer": 1})
    whole = ask(bench, claim={"rows": torch.eye(width).tolist(), "layer": 1})

    assert found.kind == "direction there"
    assert found.directions == 39
    assert len(found.nulls) == 78
    assert abs(found.criteria[0].effect.mean) < 0.5
    assert [one.effect.mean for one in whole.criteria[:2]] == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_direction_is_tested_on_prompts_alone(bench: Bench, count_tokens: Callable[[object], int]) -> None:
    import torch

    direction = torch.randn(bench.model.hidden_size, generator=torch.Generator().manual_seed(5)).tolist()
    claim = {"vector": direction, "layer": 1}
    controls = [f"Some {word} is" for word in ("bread", "water", "wine", "wood")]
    found = ask(bench, claim=claim, corrupted=None, control_prompts=controls)
    answer = SPEC.digest(found)

    assert [one.criterion for one in found.criteria] == ["necessity", "sufficiency", "dose response", "specificity"]
    assert found.gap is None
    assert all(prompt.corrupted is None and prompt.sufficiency is None for prompt in found.prompts)
    assert any("Effects are logits of the component set to zero" in note for note in answer.notes)
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000
    alone = ask(bench, claim=claim, corrupted=None, predicts="necessary")
    assert alone.criteria[0].effect.mean == pytest.approx(found.criteria[0].effect.mean, abs=1e-5)
    assert [one.criterion for one in alone.criteria] == ["necessity", "dose response"]


@pytest.fixture(scope="module")
def dictionary(bench: Bench) -> str:
    """A dictionary of the bench, with more features than are drawn at random."""
    folder = bench.settings.folders[0] / "dictionary"
    load(bench, name="claimed", source=write(folder, "blocks.1.hook_resid_post", bench.model.hidden_size, 120))
    return "claimed"


def test_features_are_tested_against_matched_ones_and_directions(
    bench: Bench, dictionary: str, count_tokens: Callable[[object], int]
) -> None:
    from tests.toolset.test_patch_activations import ask as patch

    cells = [{"site": "features", "dictionary": dictionary, "features": [1, 2]}]
    found = ask(bench, claim=cells)
    answer = SPEC.digest(found)

    assert found.directions == 39
    assert len(found.nulls) == 78
    assert not {"1", "2"} & {name for null in found.nulls[:39] for name in null.component[9:].split(", ")}
    assert "39 sets of matched features and 39 random directions moved along as far" in " ".join(answer.notes)
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000
    pairs = {name: CALL[name] for name in ("clean", "corrupted", "targets")}
    for name, direction in (("necessity", "noising"), ("sufficiency", "denoising")):
        patched = patch(bench, **pairs, cells=cells, direction=direction).patched_set
        assert patched is not None
        assert patched.recovery is not None
        effect = next(one.effect.mean for one in found.criteria if one.criterion == name)
        recovery = patched.recovery.mean
        assert effect == pytest.approx(1 - recovery if name == "necessity" else recovery, abs=1e-4)


def test_features_are_ablated_and_given_on_prompts_alone(bench: Bench, dictionary: str) -> None:
    claim = {"dictionary": dictionary, "features": list(range(9))}
    clean = [f"The capital of France {word}" for word in ("is", "and", "of", "that")]
    controls = [f"Some {word} is" for word in ("bread", "water", "wine", "wood")]
    found = ask(bench, claim=claim, clean=clean, corrupted=None, control_prompts=controls)

    edit = {
        "op": "set",
        "dictionary": dictionary,
        "features": list(range(9)),
        "value": 0.0,
        "site": "features",
        "positions": "1:",
    }
    edited = ask(bench, claim=claim, clean=clean, corrupted=None, predicts="necessary", interventions=[edit])

    assert [one.criterion for one in found.criteria] == [
        "necessity", "mean ablation", "sufficiency", "dose response", "specificity"
    ]  # fmt: skip
    assert edited.in_force
    assert abs(found.criteria[0].effect.mean) > 1e-3
    ablated = [one.clean - one.necessity for one in found.prompts if one.necessity is not None]
    assert [one.clean for one in edited.prompts] == pytest.approx(ablated, abs=1e-4)


def test_the_prompts_that_made_a_vector_are_left_out(bench: Bench) -> None:
    from tests.toolset.test_make_vector import ask as make

    controls = [f"Some {word} is" for word in ("bread", "water", "wine", "wood", "iron")]
    make(bench, name="origin", method="mean_difference", positive=CLEAN[:1], negative=controls[:1])
    claimed = ask(bench, claim={"vector": "origin", "layer": 1}, corrupted=None, control_prompts=controls)
    named = ask(bench, found_on=["origin"])

    assert [prompt.prompt for prompt in claimed.prompts] == [1, 2, 3, 4]
    assert claimed.control == 4
    assert [prompt.prompt for prompt in named.prompts] == [1, 2, 3, 4]


def test_a_stopped_call_keeps_what_was_measured(bench: Bench) -> None:
    partial: list[Any] = []

    def stop(progress: Progress) -> None:
        if progress.message.startswith("9 of"):
            job.stop(Cancelled("enough"))

    job = Job(1, stop)
    with pytest.raises(Cancelled):
        ask(bench, job, predicts="sufficient")
    assert job.partial is not None
    partial.append(job.partial())

    assert partial[0].outcome == "inconclusive"
    assert len(partial[0].nulls) == 8
    assert [one.decides for one in partial[0].criteria] == [False, True, False]


def test_a_stopped_call_is_resumed_with_equal_numbers(
    bench: Bench, usual: tuple[VerifyClaimResult, list[Progress]]
) -> None:
    def record(job: Job) -> Recorder:
        store = RunStore(bench.settings.runs)
        run = opened(store, "verify_claim", params=SPEC.parse(CALL).model_dump(mode="json"))
        job.recorder = Recorder(store, lambda: bench.environment, Recorded(run=run.id, queued=0.0))
        return job.recorder

    said: list[str] = []

    def stop(progress: Progress) -> None:
        said.append(progress.message)
        if progress.message.startswith("9 of"):
            stopped.stop(Cancelled("enough"))

    stopped, resumed = Job(1, stop), Job(2, lambda progress: said.append(progress.message))
    recorder = record(stopped)
    with pytest.raises(Cancelled) as error:
        ask(bench, stopped)
    recorder.fail(error.value, None)
    said.clear()
    recorder = record(resumed)
    result = ask(bench, resumed)
    recorder.finish(result)

    assert said[1].startswith("1 of 40 components")
    assert said[2].startswith("9 of 40 components")
    assert result.outcome == usual[0].outcome
    assert [null.component for null in result.nulls] == [null.component for null in usual[0].nulls]
    for one, other in zip(result.criteria, usual[0].criteria, strict=True):
        assert (one.criterion, one.p, one.effect.mean) == (
            other.criterion,
            other.p,
            pytest.approx(other.effect.mean, abs=1e-5),
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"claim": ["L9H0"]}, "layer 9 does not exist"),
        ({"claim": ["L1H77"]}, "head 77 does not exist"),
        ({"claim": ["layers_output L1"]}, "is the whole run"),
        ({"claim": ["mlps_output L1@city"]}, "there is no position 'city'"),
        ({"claim": [{"site": "mlps_output", "layers": 1, "heads": 0}]}, "there are no heads at mlps_output"),
        ({"claim": {"vector": [1.0, 2.0], "layer": 1}}, "has 2 numbers"),
        ({"claim": {"rows": [[1.0] * 64, [2.0] * 64], "layer": 1}}, "are not independent"),
        ({"claim": {"rows": [[1.0]], "vector": [1.0], "layer": 1}}, "give one of them"),
        ({"claim": {"vector": [1.0], "layer": 1, "site": "heads_output"}}, "directions are claimed at"),
        ({"claim": "somewhere"}, 'a cell is a head such as "L23H4"'),
        ({"corrupted": {"ablate": "zero"}}, "corrupted must be prompts"),
        ({"corrupted": ["The capital of Spain is"]}, "5 clean prompts and 1 corrupted ones"),
        ({"found_on": []}, "found_on must be"),
        ({"corrupted": None}, "heads and sublayers are exchanged for states of other prompts"),
        ({"corrupted": None, "claim": {"rows": [[1.0] * 64], "layer": 1}}, "added in control_prompts"),
        ({"corrupted": None, "claim": {"rows": [[1.0] * 64], "layer": 1}, "targets": {}}, "give targets"),
        ({"claim": ["L1H0", {"dictionary": "some", "features": [1]}]}, "without other cells"),
        ({"claim": {"dictionary": "some", "features": [1]}}, "has no dictionary"),
        ({"found_on": ["patch_activations-abcdef"]}, "there is no run"),
    ],
)
def test_it_refuses(bench: Bench, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        ask(bench, **arguments)

    assert said in error.value.message
