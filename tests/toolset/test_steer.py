"""The tool `steer`: what it says, how much, and what it refuses; its numbers are tested with the sweep."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.display.figure import Curves
from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import rounded
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.steer import SPEC
from nnterp_mcp.toolset.steer.figure import figure
from nnterp_mcp.toolset.steer.result import SteeredRun, SteerResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

INLINE = {"positive": " Paris", "negative": " Madrid"}
TARGETS = {"capital": "Paris", "traps": ["Spain", "Madrid"]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("steer"))


def ask(bench: Bench, job: Job | None = None, **arguments: Any) -> SteerResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.steer.run import run

    sent = SPEC.parse({"prompts": "The capital is", "layers": [1, 2], "factors": [-2, 4]} | arguments)
    params = SPEC.params.model_validate(sent.model_dump(mode="json"))
    result = run(bench, params, job or Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


def test_every_cell_stands_beside_its_baseline_and_its_controls(bench: Bench) -> None:
    result = ask(bench, vector=INLINE, control=True, targets=TARGETS, prompts=["The capital is", "Spain"])

    cells = [(run.prompt, run.layer, run.factor, run.control) for run in result.runs]
    steered = list(product([1, 2], [-2.0, 4.0], [None, *range(5)]))
    assert cells == [
        cell for prompt in (0, 1) for cell in ((prompt, None, 0.0, None), *((prompt, *rest) for rest in steered))
    ]
    assert result.controls == 5
    assert all(run.kl == 0 for run in result.runs if run.layer is None)
    assert all(run.kl > 0 for run in result.runs if run.layer is not None)
    assert all(run.text is None for run in result.runs)
    assert list(result.categories) == ["capital", "traps"]


@pytest.mark.parametrize("batches", [1, 3])
def test_a_stopped_sweep_keeps_the_runs_that_it_had(batches: int, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.settings = bench.settings.model_copy(update={"batch_tokens": 24})
    asked = {"vector": INLINE, "control": True, "targets": TARGETS, "prompts": ["The capital is", "Spain"]}
    whole = ask(bench, **asked)
    told: list[float] = []

    def send(progress: Progress) -> None:
        told.append(progress.done)
        if len(told) == batches:
            job.stop(Cancelled("stopped"))

    job = Job(1, send)
    with pytest.raises(Cancelled):
        ask(bench, job, **asked)
    assert job.partial is not None
    kept = job.partial()
    assert isinstance(kept, SteerResult)
    assert told[-1] <= len(kept.runs) < len(whole.runs)
    by_cell = {(run.prompt, run.layer, run.factor, run.control): run for run in whole.runs}
    for run in kept.runs:
        assert run.kl == pytest.approx(by_cell[run.prompt, run.layer, run.factor, run.control].kl, abs=1e-5)
    assert "layer 1 with factor" in SPEC.digest(kept).finding
    figure(kept, {})


def test_push_is_the_length_added_over_the_length_there(bench: Bench) -> None:
    from nnterp_mcp.nnterp.activations import get_token_activations

    result = ask(bench, vector=INLINE, layers=2, factors=-3)
    length = float(get_token_activations(bench.model, "The capital is", [2])[0, 0].norm())
    (push,) = [run.push for run in result.runs if run.push is not None]

    assert abs(push - 3 * result.norms[2] / length) < 1e-4


def test_texts_are_generated_on_request(bench: Bench) -> None:
    result = ask(bench, vector=INLINE, control=True, max_new_tokens=3)

    heard = {(run.layer, run.factor, run.control) for run in result.runs if run.text is not None}
    assert heard == {(None, 0.0, None), *product([1, 2], [-2.0, 4.0], [None, 0])}


def test_a_factor_of_zero_alone_is_no_steering(bench: Bench) -> None:
    answer = SPEC.digest(ask(bench, vector=INLINE, factors=0))

    assert answer.finding == "tiny was not steered: a factor of 0 adds nothing, and all 2 cells are the baseline."
    assert [row[0] for row in answer.table.rows] == ["baseline", 1, 2]
    assert answer.total == 2


def test_a_factor_of_zero_is_counted_and_shown(bench: Bench) -> None:
    result = ask(bench, vector=INLINE, layers=1, factors=[-1, 0, 1], control=True, targets=TARGETS)
    answer, drawn = SPEC.digest(result), figure(result, {})

    assert answer.finding.startswith('p of "capital" changes more than with 5 random directions')
    assert "factor 0 " not in answer.finding  # it alone passes its control where nothing else does
    assert (answer.total, [row[:4] for row in answer.table.rows][2]) == (3, [1, 0.0, 0.0, 0.0])
    for panel, measure in zip(drawn.panels, [lambda run: run.kl, lambda run: run.targets[0][0]], strict=False):
        assert isinstance(panel, Curves)
        own, random = panel.curves
        assert own.x == random.x == [-1.0, 0.0, 1.0]
        assert own.y[1] == random.y[1] == measure(result.runs[0])


def test_named_vectors_and_numbers(bench: Bench) -> None:
    from nnterp_mcp.experiments.steering_vectors import random_direction
    from nnterp_mcp.toolset.make_vector import SPEC as MAKE
    from nnterp_mcp.toolset.make_vector.run import run

    make = MAKE.parse({"name": "noise", "method": "random", "norm": 3, "seed": 2})
    run(bench, make, Job(1, lambda progress: None))
    numbers = random_direction(bench.model.hidden_size, 3, 2).vectors[0].tolist()
    named, given = ask(bench, vector="noise"), ask(bench, vector=numbers)

    assert [round(run.kl, 5) for run in named.runs] == [round(run.kl, 5) for run in given.runs]
    assert named.vector == "the vector 'noise'"
    MAKE.parse({"name": "few", "method": "activation", "positive": "We", "layers": [1]})
    few = MAKE.parse({"name": "few", "method": "activation", "positive": "We", "layers": [1]})
    run(bench, few, Job(1, lambda progress: None))
    with pytest.raises(InvalidRequest, match="the vector 'few' has no direction for layer 2: it has one for layers 1"):
        ask(bench, vector="few")
    in_force = ask(bench, vector="noise", interventions=[{"op": "project_out", "layers": 1, "vector": "noise"}])
    assert len(in_force.in_force) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": []}, r"factors must be a number or a list of 1 to 32 numbers, not \[\]"),
        ({"factors": [True]}, "factors must be a number or a list"),
        ({"factors": "x"}, "factors must be a number or a list"),
        ({"vector": {}}, "vector must be the name of a vector"),
        ({"max_new_tokens": -1}, "max_new_tokens: input should be greater than or equal to 0"),
        ({"positions": "first"}, "a position must be an integer"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SPEC.parse({"prompts": "We", "vector": "joy", "layers": 1, "factors": 1} | arguments)


def test_refusals_in_the_worker(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="layer 4 does not exist: tiny has layers 0 to 3"):
        ask(bench, vector=INLINE, layers=4)
    with pytest.raises(InvalidRequest, match="tiny has no vector 'joy'"):
        ask(bench, vector="joy")
    with pytest.raises(InvalidRequest, match="the vector given has 3 numbers"):
        ask(bench, vector=[1.0, 2.0, 3.0])
    with pytest.raises(InvalidRequest, match="is zero, so it has no direction"):
        ask(bench, vector={"positive": " a", "negative": " a"})
    with pytest.raises(LimitExceeded, match="and at most 20000 are made in a call"):
        ask(
            Bench("tiny", Settings(max_prompts=1000), bench.model),
            prompts=["a"] * 600,
            vector=INLINE,
            factors=list(range(10)),
            layers="all",
        )


def test_progress_grows_and_a_cancelled_call_stops(bench: Bench) -> None:
    told: list[Progress] = []
    ask(bench, Job(1, told.append), vector=INLINE, max_new_tokens=3)

    assert len(told) > 2
    assert [progress.done for progress in told] == sorted({progress.done for progress in told})
    job = Job(1, lambda progress: job.stop(Cancelled("the client cancelled the call")))
    with pytest.raises(Cancelled):
        ask(bench, job, vector=INLINE, max_new_tokens=3)


def made_result(
    layers: int, factors: int, prompts: int = 1, controls: int = 0, text: str | None = None, categories: int = 0
) -> SteerResult:
    """A result with wide cells, for measuring answers without a model."""
    runs: list[SteeredRun] = []
    top = [(" Constantinople", 0.123456), (" Liechtenstein", 0.0123456), ("\n\n", 1.2345e-5)]
    for prompt in range(prompts):
        shared: dict[str, Any] = {"prompt": prompt, "top": top}
        before = [(0.00123456, 1234)] * categories
        runs.append(
            SteeredRun(layer=None, factor=0, control=None, push=None, kl=0, text=text, targets=before, **shared)
        )
        for layer, factor, control in product(range(layers), range(1, factors + 1), [None, *range(controls)]):
            size = 1.0 if control is None else 0.3 + 0.11 * control
            runs.append(
                SteeredRun(
                    layer=layer,
                    factor=factor - factors / 2 - 0.25,
                    control=control,
                    push=0.3456 * factor,
                    kl=size * (0.12345 * factor + 0.01 * layer),
                    text=text if control in (None, 0) else None,
                    targets=[(min(1.0, size * (0.001 + 0.01234 * layer)), 123)] * categories,
                    **shared,
                )
            )
    return SteerResult(
        model="smollm2-135m",
        vector="the vector 'joy'",
        norms=dict.fromkeys(range(layers), 20.0),
        prompts=["I think that"] * prompts,
        controls=controls,
        categories={f"category {index}": [" a"] for index in range(categories)},
        shared={},
        in_force=[],
        runs=runs,
    )


TEXT = (
    " filled with so much love and support from my family and friends.\nI'm happy to share my passion for the outdoors"
    * 3
)
CASES = {
    "plain": made_result(3, 2),
    "control": made_result(3, 2, controls=5),
    "targets": made_result(3, 2, controls=5, categories=2),
    "prompts": made_result(2, 2, prompts=3, controls=5, categories=1),
    "text": made_result(1, 2, text=TEXT),
    "texts": made_result(1, 2, prompts=2, text=TEXT, controls=5),
    "one": made_result(1, 1),
}


@pytest.mark.parametrize("case", list(CASES))
def test_says(snapshot: SnapshotAssertion, case: str) -> None:
    assert SPEC.digest(CASES[case]).text() == snapshot


def test_an_effect_within_its_control_is_said_to_be_none() -> None:
    result = made_result(1, 1, controls=5)
    for run in result.runs:
        run.kl = 0.5 if run.control is None else 0.3 + 0.1 * run.control

    said = SPEC.digest(result).finding
    assert said.startswith("KL changes no more than with 5 random directions of equal norm (by 2 sd): at layer 0")
    assert "is 0.5 nats (control 0.5 ± 0.16)" in said


def test_both_channels_say_the_same() -> None:
    answer = SPEC.digest(CASES["targets"])
    said = answer.text()

    assert answer.finding in said
    assert all(note in said for note in answer.notes)
    assert len(said.split("\n")) == 2 + len(answer.table.rows) + len(answer.notes)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "result",
    [
        made_result(32, 5),
        made_result(32, 5, controls=5),
        made_result(32, 5, controls=5, categories=6),
        made_result(32, 5, prompts=20, controls=5, categories=2),
        made_result(32, 5, text=TEXT),
        made_result(32, 5, text=TEXT, controls=5, categories=1),
        made_result(32, 5, prompts=20, text=TEXT),
    ],
    ids=["plain", "control", "targets", "prompts", "text", "text control", "texts"],
)
def test_answers_are_small(smollm2_folder: Path, result: SteerResult) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    answer = SPEC.digest(result)

    assert answer.truncated
    assert len(answer.table.rows) >= 3
    assert len(tokenizer(answer.text())["input_ids"]) <= 1000
    assert len(tokenizer(json.dumps(rounded(answer.structured()), ensure_ascii=False))["input_ids"]) <= 1000


def test_the_finding_speaks_of_the_distribution_where_no_target_moves_further_than_by_chance():
    def run(layer: int | None, control: int | None, kl: float, p: float) -> SteeredRun:
        there: dict[str, Any] = {"prompt": 0, "top": [(" a", 0.5)], "text": None, "push": None}
        return SteeredRun(
            layer=layer, factor=float(layer is not None), control=control, kl=kl, targets=[(p, 9)], **there
        )

    quiet = [run(1, None, 0.1, 0.011), *(run(1, draw, 0.1 + 0.01 * draw, 0.009 + 0.001 * draw) for draw in range(5))]
    loud = [run(2, None, 3.4, 0.02), *(run(2, draw, 0.2 + 0.05 * draw, 0.1 * draw) for draw in range(5))]
    result = SteerResult(
        model="tiny",
        vector="the vector 'joy'",
        norms={1: 1.0, 2: 1.0},
        prompts=["a"],
        controls=5,
        categories={"good": [" good"]},
        shared={},
        in_force=[],
        runs=[run(None, None, 0.0, 0.01), *quiet, *loud],
    )

    assert SPEC.digest(result).finding.startswith(
        'p of "good" changes more than with 5 random directions of equal norm (by 2 sd) in none of 2 cells, KL in 1; '
        "of these, KL changes most at layer 2 with factor 1"
    )


def test_groups_of_prompts_are_a_vector_as_make_vector_makes_it(bench: Bench) -> None:
    from nnterp_mcp.toolset.make_vector import SPEC as MAKE
    from nnterp_mcp.toolset.make_vector.run import run

    groups = {"positive": ["a b c", "Paris is"], "negative": ["the of", "and x"]}
    make = MAKE.parse({"name": "contrast", "method": "mean_difference", **groups})
    run(bench, make, Job(1, lambda progress: None))
    named, given = ask(bench, vector="contrast"), ask(bench, vector=groups)

    assert [run.kl for run in given.runs] == pytest.approx([run.kl for run in named.runs], abs=1e-6)
    assert given.vector == "the mean state of 2 prompts − that of 2"


def test_texts_are_scored_by_the_unedited_model(bench: Bench) -> None:
    import torch

    result = ask(bench, prompts="The capital", vector=INLINE, layers=1, factors=8, max_new_tokens=4)
    model, tokenizer = bench.model.module, bench.model.tokenizer
    for run in result.runs:
        ids = [*tokenizer("The capital")["input_ids"], *tokenizer(run.text, add_special_tokens=False)["input_ids"]]
        if tokenizer.decode(ids, skip_special_tokens=True) != f"The capital{run.text}":
            continue
        start = len(tokenizer("The capital")["input_ids"])
        with torch.no_grad():
            chosen = model(torch.tensor([ids])).logits[0].log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]]
        if len(ids) == start + 4:
            assert run.perplexity == pytest.approx(float((-chosen.mean()).exp()), rel=1e-4)
    assert all(run.perplexity is not None and run.perplexity > 1 for run in result.runs)


@pytest.mark.parametrize("seed", range(12))
def test_the_cell_of_the_finding_follows_from_the_runs_by_the_criterion_that_it_names(seed: int) -> None:
    dice = random.Random(seed)
    result = made_result(4, 3, controls=5, categories=seed % 3)
    for run in result.runs:
        scale = dice.choice([0.1, 1.0]) if run.control is None else 0.3
        run.kl = 0.0 if run.layer is None else scale * dice.random()
        run.targets = [(0.5 + 0.4 * scale * dice.uniform(-1, 1), 1) for _ in run.targets]
    said = SPEC.digest(result).finding

    def values(of: Callable[[SteeredRun], float]) -> dict[tuple[int, float], tuple[float, bool]]:
        """The change in each cell, and whether it exceeds its control."""
        cells: dict[tuple[int, float], tuple[float, bool]] = {}
        for run in result.runs:
            if run.layer is not None and run.control is None:
                same = [
                    of(other)
                    for other in result.runs
                    if (other.layer, other.factor) == (run.layer, run.factor) and other.control is not None
                ]
                exceeds = abs(of(run) - fmean(same)) > 2 * stdev(same)
                cells[run.layer, run.factor] = (abs(of(run) - of(result.runs[0])), exceeds)
        return cells

    criteria = [values(lambda run: run.targets[0][0])] if result.categories else []
    criteria.append(values(lambda run: run.kl))
    counts = [sum(exceeds for _, exceeds in cells.values()) for cells in criteria]
    chosen = next((cells for cells, count in zip(criteria, counts, strict=True) if count), criteria[0])
    least = any(exceeds for _, exceeds in chosen.values())
    best = max((cell for cell in chosen if chosen[cell][1] >= least), key=lambda cell: chosen[cell][0])
    assert f"at layer {best[0]} with factor {best[1]:g}, " in said
    assert f" in {counts[0] or 'none'} of 12 cells" in said
    assert len(counts) == 1 or f", KL in {counts[1] or 'none'};" in said
