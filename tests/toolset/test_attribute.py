"""The tool `attribute`: what it says, how much, and what it refuses; its numbers are tested elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.contract import Measured
from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded, Unsupported
from nnterp_mcp.formatting import rounded
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.toolset.attribute import SPEC
from nnterp_mcp.toolset.attribute.result import AttributedPart, AttributeResult, Checked, LayerSum
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

TARGETS = {"answer": "Paris", "wrong": "Madrid"}
PROMPT, OTHER = "The capital of France is", "The capital of Spain is"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("attribution"))


def ask(bench: Bench, job: Job | None = None, **arguments: Any) -> AttributeResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.attribute.run import run

    sent = SPEC.parse({"prompts": PROMPT, "targets": TARGETS} | arguments)
    params = SPEC.params.model_validate(sent.model_dump(mode="json"))
    result = run(bench, params, job or Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


class Keeping(Job):
    """A job that keeps arrays in memory."""

    def __init__(self) -> None:
        super().__init__(1, lambda progress: None)
        self.kept: dict[str, Any] = {}

    def keep(self, name: str, array: Any, axes: Any) -> None:
        self.kept[name] = array, axes


def logit_difference(bench: Bench, prompt: str) -> float:
    """Computed by the Hugging Face model alone."""
    import torch

    from nnterp_mcp.engine.readouts.targets import get_first_tokens

    tokenizer = bench.model.tokenizer
    with bench.model.standing_down(), torch.no_grad():
        logits = bench.model.module(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
    sums = [logits[get_first_tokens(word, tokenizer)].logsumexp(0) for word in TARGETS.values()]
    return float(sums[0] - sums[1])


@pytest.mark.parametrize(("by", "kinds"), [
    ("head", {"head", "mlp"}), ("layer", {"layer"}), ("sublayer", {"attention", "mlp"}),
    ("neuron", {"attention", "neuron"}),
])  # fmt: skip
def test_parts_add_up_to_the_logit_difference(bench: Bench, by: str, kinds: set[str]) -> None:
    result = ask(bench, by=by)

    assert result.metric == "logit_difference"
    assert result.whole.mean == pytest.approx(logit_difference(bench, PROMPT), abs=1e-5)
    assert sum(part.value.mean for part in result.parts) == pytest.approx(result.whole.mean, abs=1e-5)
    assert {part.kind for part in result.parts} - {"embeddings", "token choice"} == kinds
    assert result.error is not None
    assert result.error < 1e-5
    inside = sum(sum(filter(None, (one.attention, one.mlp, one.rest))) for one in result.layers)
    beside = sum(part.value.mean for part in result.parts if part.layer is None)
    assert inside + beside == pytest.approx(result.whole.mean, abs=1e-5)


def test_layers_that_are_not_split_stay_whole(bench: Bench) -> None:
    result = ask(bench, by="head", layers=[1, -1])

    assert {part.layer for part in result.parts if part.kind == "head"} == {1, 3}
    assert {part.layer for part in result.parts if part.kind == "layer"} == {0, 2}


def test_many_neurons_are_listed_in_part_and_kept_in_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnterp_mcp.toolset.attribute.run.MOST_LISTED", 20)
    result = ask(bench, keeping := Keeping(), by="neuron")
    array, axes = keeping.kept["values"]

    assert len(result.parts) == 20
    assert result.total == array.shape[1] == len(axes["part"]) > 300
    assert sum(part.value.mean for part in result.parts) + result.left == pytest.approx(result.whole.mean, abs=1e-5)
    assert float(array.sum()) == pytest.approx(result.whole.mean, abs=1e-4)
    part = result.parts[3]
    name = " ".join(str(item) for item in (part.kind, part.layer, part.index) if item is not None)
    assert float(array[0, axes["part"].index(name)]) == pytest.approx(part.value.mean, abs=1e-6)


def test_several_prompts_have_means_and_intervals(bench: Bench) -> None:
    swapped = {"answer": "Madrid", "wrong": "Paris"}
    alone = [ask(bench, prompts=p, targets=t) for p, t in ((PROMPT, TARGETS), (OTHER, swapped))]
    both = ask(bench, prompts=[PROMPT, OTHER], targets=[TARGETS, swapped])

    for part, one, other in zip(both.parts, alone[0].parts, alone[1].parts, strict=True):
        values = sorted([one.value.mean, other.value.mean])
        assert part.value.mean == pytest.approx(sum(values) / 2, abs=1e-5)
        assert [part.value.low, part.value.high] == pytest.approx(values, abs=1e-5)


def test_heads_are_split_by_source_token(bench: Bench) -> None:
    by_head, by_source = ask(bench), ask(bench, by="source_token")

    heads = {(part.layer, part.index): part for part in by_head.parts if part.kind == "head"}
    for (layer, head), whole in heads.items():
        own = [part for part in by_source.parts if (part.layer, part.index) == (layer, head)]
        assert sum(part.value.mean for part in own) == pytest.approx(whole.value.mean, abs=1e-5)
        assert [sum(part.logits[at] for part in own) for at in (0, 1)] == pytest.approx(whole.logits, abs=1e-5)
        assert whole.logits[0] - whole.logits[1] == pytest.approx(whole.value.mean, abs=1e-5)
    strongest = max(by_source.parts, key=lambda part: part.value.mean)
    said = SPEC.digest(by_source)
    assert f"L{strongest.layer}H{strongest.index} from " in said.finding
    assert said.table.columns[-2:] == ["logit answer", "logit wrong"]


def test_categories_stand_side_by_side(bench: Bench) -> None:
    three = ask(bench, targets={"a": "Paris", "b": "Madrid", "c": "Rome"}, by="layer")
    alone = [ask(bench, targets={"it": city}, by="layer") for city in ("Paris", "Madrid", "Rome")]

    own = [{(part.kind, part.layer): part.value.mean for part in one.parts} for one in alone]
    assert three.metric == "logit"
    for part in three.parts:
        assert part.logits == pytest.approx([one.get((part.kind, part.layer), 0.0) for one in own], abs=1e-5)


def test_one_category_is_a_logit_or_a_log_probability(bench: Bench) -> None:
    assert ask(bench, targets={"a": "Paris"}, by="layer").metric == "logit"
    assert ask(bench, targets={"a": "Paris"}, method="gradient").metric == "log_probability"


def test_tokens_are_attributed_by_gradients(bench: Bench) -> None:
    slopes = ask(bench, method="gradient", prompts=[PROMPT, OTHER])
    whole = ask(bench, method="integrated", steps=64)

    assert [part.prompt for part in slopes.parts] == [0] * 6 + [1] * 6
    assert (slopes.parts[4].index, slopes.parts[4].token) == (4, " France")
    assert whole.base is not None
    assert whole.error is not None
    total = sum(part.value.mean for part in whole.parts)
    assert total == pytest.approx(logit_difference(bench, PROMPT) - whole.base.mean, abs=1e-3)
    assert abs(total - (whole.whole.mean - whole.base.mean)) == pytest.approx(whole.error, abs=1e-5)


@pytest.mark.parametrize(("by", "sites"), [
    ("layer", ["layers_output"]), ("sublayer", ["attentions_output", "mlps_output"]), ("head", ["heads_output"]),
])  # fmt: skip
def test_patches_are_estimated_and_the_strongest_made(bench: Bench, by: str, sites: list[str]) -> None:
    from tests.toolset.test_patch_activations import ask as patch

    result = ask(bench, method="patching", by=by, corrupted=OTHER)
    more: dict[str, Any] = {"heads": "all"} if by == "head" else {}
    real = patch(bench, clean=PROMPT, corrupted=OTHER, targets=TARGETS, sites=sites, **more)

    assert result.base is not None
    assert real.corrupted is not None
    assert [result.whole.mean, result.base.mean] == pytest.approx([real.clean.mean, real.corrupted.mean], abs=1e-5)
    assert [(part.kind, part.layer, part.index) for part in result.parts] == [
        (cell.site, cell.layer, cell.column) for cell in real.cells
    ]
    made = [(part.patched, cell.effect) for part, cell in zip(result.parts, real.cells, strict=True)
            if part.patched is not None]  # fmt: skip
    assert result.checked is not None
    assert len(made) == result.checked.cells
    assert [effect for effect, _ in made] == pytest.approx([effect for _, effect in made], abs=1e-4)
    order = sorted(result.parts, key=lambda part: -abs(part.value.mean))
    assert all(part.patched is not None for part in order[: result.checked.strongest])


def test_neurons_are_patched_in_estimate_and_kept_in_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnterp_mcp.toolset.attribute.cells.MOST_LISTED", 5)
    arguments: dict[str, Any] = {"method": "patching", "by": "neuron", "corrupted": OTHER}
    result = ask(bench, keeping := Keeping(), **arguments)
    array, axes = keeping.kept["estimates"]

    assert result.checked is not None
    assert result.total == array.shape[1] == len(axes["cell"]) > len(result.parts)
    assert {part.layer for part in result.parts} == set(range(bench.model.num_layers))
    order = sorted(result.parts, key=lambda part: -abs(part.value.mean))
    assert all(part.patched is not None for part in order[: result.checked.strongest])
    assert abs(order[0].value.mean) == pytest.approx(float(array.abs().max()), abs=1e-6)
    assert (
        f"part=parts has {len(result.parts)}, the strongest among them, part=estimates all"
        in SPEC.digest(result).notes[-1]
    )


def test_equal_runs_are_said_to_be_equal(bench: Bench) -> None:
    result = ask(bench, method="patching", corrupted=PROMPT)

    assert result.checked is None
    assert "No cell changes anything" in SPEC.digest(result).finding
    assert SPEC.digest(result).table.rows == []


def test_interventions_are_in_force(bench: Bench) -> None:
    operation = {"op": "zero", "site": "mlps_output", "layers": [2]}
    for method in ("direct", "gradient"):
        result = ask(bench, method=method, interventions=[operation])
        assert result.in_force
        assert result.whole.mean != pytest.approx(logit_difference(bench, PROMPT), abs=1e-3)
    parts = ask(bench, by="sublayer", interventions=[operation]).parts
    assert [part.value.mean for part in parts if (part.kind, part.layer) == ("mlp", 2)] == [0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"by": "token"},
            "method direct attributes by head, source_token, layer, sublayer, neuron, feature, not by token",
        ),
        ({"method": "gradient", "by": "head"}, "method gradient attributes by token, feature, not by head"),
        ({"method": "patching"}, "method patching needs corrupted prompts"),
        ({"corrupted": OTHER}, "method direct takes no corrupted: method patching does"),
        ({"targets": {}}, "method direct takes 1 to 6 target categories, the answer first, and 0 came"),
        ({"method": "gradient", "targets": {"a": "a", "b": "b", "c": "c"}}, "1 to 2 target categories.*and 3 came"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"method": "patching", "corrupted": {"ablate": "zero"}}, "patch_activations does"),
        (
            {"method": "patching", "corrupted": OTHER, "interventions": [{"op": "skip", "layers": 1}]},
            "method patching takes no interventions",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SPEC.parse({"prompts": PROMPT, "targets": TARGETS} | arguments)


def test_refusals_in_the_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="2 targets came for 1 prompt"):
        ask(bench, targets=[TARGETS] * 2)
    with pytest.raises(InvalidRequest, match="layer 7 does not exist"):
        ask(bench, layers=[7])
    monkeypatch.setattr("nnterp_mcp.toolset.attribute.run._MOST_PASSES", 10)
    with pytest.raises(LimitExceeded, match=r"130 passes .* and at most 10"):
        ask(bench, method="integrated")
    monkeypatch.setattr("nnterp_mcp.toolset.attribute.run._MOST_CELLS", 23)
    with pytest.raises(LimitExceeded, match=r"24 cells .* and at most 23"):
        ask(bench, method="patching", corrupted=OTHER)
    monkeypatch.setattr("nnterp_mcp.experiments.attribution.direct_logit.find_writes", lambda model: [None] * 4)
    with pytest.raises(Unsupported, match="cannot be told apart in layer 0"):
        ask(bench)


@pytest.mark.parametrize("method", ["direct", "gradient", "integrated", "patching"])
def test_progress_grows_and_a_cancelled_call_stops(bench: Bench, method: str) -> None:
    more = {"corrupted": [OTHER, PROMPT]} if method == "patching" else {}
    told: list[Progress] = []
    ask(bench, Job(1, told.append), method=method, prompts=[PROMPT, OTHER], **more)

    assert told
    assert [progress.done for progress in told] == sorted({progress.done for progress in told})
    job = Job(1, told.append)
    job.stop(Cancelled("the call was cancelled"))
    with pytest.raises(Cancelled):
        ask(bench, job, method=method, prompts=[PROMPT, OTHER], **more)


def made_result(method: str, by: str, *, layers: int = 3, width: int = 4, prompts: int = 1) -> AttributeResult:
    """A result with wide numbers, for measuring answers without a model."""
    interval = prompts > 1

    def measured(value: float) -> Measured:
        return Measured(mean=value, low=value - 0.12345, high=value + 0.12345) if interval else Measured(mean=value)

    def part(kind: str, layer: int | None, index: int | None) -> AttributedPart:
        value = ((layer or 0) * 13 + (index or 0) * 29 + len(kind)) % 97 / 9.7 - 5.0321
        token = " Liechtenstein" if by in ("token", "layer", "sublayer") else None
        patched = value * 1.2345 if method == "patching" else None
        shown = Measured(mean=value) if by == "token" else measured(value)
        return AttributedPart(
            kind=kind, layer=layer, index=index, prompt=0 if by == "token" else None, token=token, value=shown,
            patched=patched,
        )  # fmt: skip

    kinds = {"layer": ["layers_output"], "sublayer": ["attentions_output", "mlps_output"], "head": ["heads_output"],
             "neuron": ["neurons"]}  # fmt: skip
    if by == "token":
        parts = [part("token", None, at) for at in range(width)]
    elif method == "patching":
        parts = [part(kind, at, index) for kind in kinds[by] for at in range(layers) for index in range(width)]
    else:
        parts = [part("head", at, index) for at in range(layers) for index in range(width)]
        parts += [part("mlp", at, None) for at in range(layers)]
        parts += [part("embeddings", None, None), part("token choice", None, None)]
    return AttributeResult(
        model="smollm2-135m",
        method=method,
        by=by,
        metric="logit_difference",
        prompts=["The capital of France is"] * prompts,
        categories={"answer": [" Paris"], "wrong": [" Madrid"]},
        shared={},
        in_force=[],
        whole=measured(6.54321),
        base=None if method in ("direct", "gradient") else measured(-3.456),
        corruption="corrupted prompts" if method == "patching" else None,
        error={"direct": 2.3e-6, "integrated": 0.81}.get(method),
        parts=parts,
        total=len(parts),
        layers=[LayerSum(layer=at, attention=at * 0.7 - 3, mlp=4.321 - at) for at in range(layers)]
        if method == "direct"
        else [],
        shown=4 if layers == 3 else 20,
        checked=Checked(cells=20, strongest=10, pearson=0.9345, agreement=0.9) if method == "patching" else None,
    )


CASES = {
    "heads": made_result("direct", "head"),
    "heads of prompts": made_result("direct", "head", prompts=12),
    "gradient": made_result("gradient", "token"),
    "integrated": made_result("integrated", "token"),
    "patching": made_result("patching", "layer"),
    "patching heads": made_result("patching", "head", prompts=12),
    "patching neurons": made_result("patching", "neuron").model_copy(update={"total": 46_080}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_says(snapshot: SnapshotAssertion, case: str) -> None:
    assert SPEC.digest(CASES[case]).text() == snapshot


def test_both_channels_say_the_same() -> None:
    answer = SPEC.digest(CASES["patching"])
    said = answer.text()

    assert answer.finding in said
    assert all(note in said for note in answer.notes)
    assert [len(values) for values in answer.by_layer.values()] == [3]
    assert len(said.split("\n")) == 2 + len(answer.table.rows) + len(answer.by_layer) + len(answer.notes)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "result",
    [
        made_result("direct", "head", layers=32, width=32, prompts=20),
        made_result("integrated", "token", layers=32, width=200),
        made_result("patching", "sublayer", layers=32, width=40, prompts=20),
    ],
    ids=["direct", "integrated", "patching"],
)
def test_answers_are_small(count_tokens: Callable[[object], int], result: AttributeResult) -> None:
    answer = SPEC.digest(result)

    assert answer.truncated
    assert 10 <= len(answer.table.rows) <= 20
    assert count_tokens(answer.text()) <= 1000
    assert count_tokens(rounded(answer.structured())) <= 1000
