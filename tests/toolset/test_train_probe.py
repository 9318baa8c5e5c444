"""The tool `train_probe` against scikit-learn, used directly on states that plain hooks took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.display.figure import Curves
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import rounded
from nnterp_mcp.request.vectors import ModelIdentity, VectorCard
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.train_probe import SPEC
from nnterp_mcp.toolset.train_probe.result import ProbedGroup, ProbedLayer, TrainProbeResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_collect_activations import collect
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

CITIES = ["Rome is old", "Paris is large", "Berlin is grey", "Madrid is warm", "Oslo is cold", "Cairo is loud and hot"]
COUNTS = ["one and two", "three", "four and five", "six or seven", "eight", "nine and ten and more"]
GROUPS = {"city": CITIES, "count": COUNTS}

PRAISE = ["wonderful", "lovely", "brilliant", "delightful", "superb", "charming", "excellent", "beautiful", "perfect"]
PRAISE += ["marvellous"]
BLAME = ["dreadful", "awful", "terrible", "boring", "horrible", "painful", "disgusting", "miserable", "worthless"]
BLAME += ["pathetic"]
SENTIMENT = {
    name: [form.format(word) for word in words for form in ("The meal was {} and", "We found the trip {}, so")]
    for name, words in {"positive": PRAISE, "negative": BLAME}.items()
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = make_bench(tmp_path_factory.mktemp("probe"))
    bench.settings = bench.settings.model_copy(update={"max_prompts": 64})
    return bench


@pytest.fixture(scope="module")
def plain() -> Any:
    from nnterp_mcp.verification.tiny import tiny_model
    from tests.engine.plain import FAMILIES, Plain

    return Plain(tiny_model("llama"), FAMILIES["llama"])


def train(bench: Bench, **arguments: Any) -> TrainProbeResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.train_probe.run import run

    given = arguments if "run" in arguments else {"prompts": GROUPS} | arguments
    sent = SPEC.parse({"shuffles": 2, "folds": 3} | given).model_dump(mode="json")
    result = run(bench, SPEC.params.model_validate(sent), Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


def states_of(bench: Bench, plain: Any, prompts: list[str], layer: int, start: int = -1) -> list[np.ndarray]:
    """For each prompt its states from a position on, taken by plain hooks."""
    ids = [bench.model.tokenizer(prompt)["input_ids"] for prompt in prompts]
    return [plain.read(one, "layers_output", layer)[start:].numpy() for one in ids]


def sklearn_probe(method: str) -> Any:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = {"logistic": LogisticRegression(max_iter=5000), "ridge": RidgeClassifier()}
    return Pipeline([("scale", StandardScaler()), ("probe", kinds[method])])


@pytest.mark.parametrize("method", ["logistic", "ridge", "difference_of_means"])
@pytest.mark.parametrize("positions", ["last", "-2:"])
def test_accuracies_are_those_of_scikit_learn(bench: Bench, plain: Any, method: str, positions: str) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    result = train(bench, method=method, positions=positions, layers=[0, 3])
    assert result.paired
    prompts, names = [*CITIES, *COUNTS], np.repeat([0, 1], 6)

    assert result.majority == pytest.approx(0.5, abs=0.05)
    for layer in result.layers:
        taken = states_of(bench, plain, prompts, layer.layer or 0, -1 if positions == "last" else -2)
        owner = np.repeat(range(12), [len(states) for states in taken])
        states, labels = np.concatenate(taken), names[owner]
        pair = owner % 6
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=0).split(states, labels, pair)
        right = 0
        for learned, held in folds:
            assert not set(pair[learned]) & set(pair[held])
            if method == "difference_of_means":
                means = [states[learned][labels[learned] == label].mean(0) for label in (0, 1)]
                distances = np.stack([np.linalg.norm(states[held] - mean, axis=1) for mean in means])
                guess = distances.argmin(0)
            else:
                guess = sklearn_probe(method).fit(states[learned], labels[learned]).predict(states[held])
            right += int((guess == labels[held]).sum())
        assert layer.accuracy == pytest.approx(right / len(labels))
        assert layer.low < layer.accuracy <= layer.high or layer.accuracy == 1.0 == layer.high


@pytest.mark.parametrize("method", ["logistic", "ridge", "difference_of_means"])
def test_a_probe_becomes_a_vector(bench: Bench, plain: Any, method: str) -> None:
    result = train(bench, method=method, layers=[1, 2], save_as="city")
    found = bench.find_vector("city")

    assert result.vector is not None
    assert result.vector.layers == [1, 2]
    assert found.isnan().any(-1).tolist() == [True, False, False, True]
    labels = np.repeat([0, 1], 6)
    for layer in (1, 2):
        states = np.concatenate(states_of(bench, plain, [*CITIES, *COUNTS], layer))
        apart = states[:6].mean(0) - states[6:].mean(0)
        normal = apart
        if method != "difference_of_means":
            scale, probe = sklearn_probe(method).fit(states, labels).named_steps.values()
            normal = -np.ravel(probe.coef_) / scale.scale_
        unit = normal / np.linalg.norm(normal)
        assert np.allclose(found[layer].numpy(), unit * (apart @ unit), atol=2e-4)
        # Factor 1 is the way between the means along the direction.
        direction = found[layer].numpy()
        assert float(apart @ direction / np.linalg.norm(direction)) == pytest.approx(
            float(np.linalg.norm(direction)), rel=1e-4
        )
    again = train(bench, method=method, layers=[1, 2], save_as="city")
    assert again.replaced == result.vector.made
    card = bench.vectors.find("city", bench.identity, "tiny")
    assert (card.tool, card.request["save_as"]) == ("train_probe", "city")


def test_a_run_gives_what_its_prompts_give(bench: Bench) -> None:
    for positions in ("all", "-2:"):
        run_id, _ = collect(bench, prompts=GROUPS, positions=positions)
        direct, recalled = train(bench, positions=positions), train(bench, run=run_id)

        assert recalled.run == run_id
        assert recalled.model_copy(update={"run": None}) == direct
    assert [layer.layer for layer in train(bench, run=run_id, layers=[1, 3]).layers] == [1, 3]
    with_heads, _ = collect(bench, prompts=GROUPS, site="heads_output", layers=[2])
    at_heads = train(bench, run=with_heads)
    assert at_heads.width == bench.model.hidden_size
    assert at_heads.model_copy(update={"run": None}) == train(bench, site="heads_output", layers=[2])
    with pytest.raises(InvalidRequest, match="save_as keeps the direction between two groups at layers_output"):
        train(bench, run=with_heads, save_as="heads")
    alone, _ = collect(bench, prompts=CITIES)
    with pytest.raises(InvalidRequest, match="a probe tells groups apart"):
        train(bench, run=alone)


@pytest.mark.parametrize("site", ["token_embeddings", "mlps_output", "queries"])
def test_any_site_is_probed_as_scikit_learn_does(bench: Bench, plain: Any, site: str) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    (layer,) = train(bench, site=site, **({} if site == "token_embeddings" else {"layers": 2})).layers
    texts, labels = [*CITIES, *COUNTS], np.repeat([0, 1], 6)
    ids = [bench.model.tokenizer(text)["input_ids"] for text in texts]
    at = -1 if site == "token_embeddings" else 2
    states = np.stack([plain.read(one, site, at)[-1].flatten().numpy() for one in ids])
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0).split(states, labels, np.arange(12) % 6)
    right = [
        sklearn_probe("logistic").fit(states[learned], labels[learned]).predict(states[held]) == labels[held]
        for learned, held in folds
    ]

    assert layer.accuracy == pytest.approx(np.concatenate(right).mean())


def test_rows_of_one_text_are_never_on_both_sides() -> None:
    from nnterp_mcp.experiments.probes import deal_folds

    texts = np.array([0, 0, 1, 1, 2, 3, 0, 4, 5, 5, 6, 7])
    labels = np.array([0] * 6 + [1] * 6)
    folds = deal_folds(labels, texts, 5, 0)

    assert len(folds) == 4
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(12))
    for learned, held in folds:
        assert not set(texts[learned]) & set(texts[held])
    with pytest.raises(InvalidRequest, match="a group has one distinct prompt"):
        deal_folds(labels, np.where(labels == 0, 1, texts), 5, 0)


def test_repeated_texts_do_not_leak(bench: Bench) -> None:
    # Twice the same twelve texts: were they told apart by number, the copy of each would be learned from.
    doubled = {name: prompts * 2 for name, prompts in GROUPS.items()}
    result = train(bench, prompts=doubled, layers=[2])

    assert result.texts == 12
    assert result.layers[0].accuracy == train(bench, layers=[2]).layers[0].accuracy


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=8), min_size=2, max_size=4))
def test_pairs_and_equal_texts_stay_together(groups: list[list[int]]) -> None:
    from nnterp_mcp.experiments.probes import join_pairs

    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    texts = np.concatenate(groups)
    number_of = {text: at for at, text in enumerate(texts)}
    together = join_pairs(labels, np.array([number_of[text] for text in texts]))

    for text in set(texts):
        assert len(set(together[texts == text])) == 1
    if len({len(group) for group in groups}) == 1 and len(set(together)) < len(set(texts)):
        pairs = together.reshape(len(groups), -1)
        assert (pairs == pairs[0]).all()


def test_minimal_pairs_that_are_split_fall_below_chance() -> None:
    from nnterp_mcp.experiments.probes import deal_folds, join_pairs, make_probe, predict_held_out

    generator = np.random.default_rng(0)
    pairs = generator.normal(size=(40, 60))
    states = np.concatenate([pairs, pairs + 0.01 * generator.normal(size=pairs.shape)])
    labels, texts = np.repeat([0, 1], 40), np.arange(80)
    split, together = (
        (predict_held_out(states, labels, deal_folds(labels, units, 5, 0), make_probe("logistic")) == labels).mean()
        for units in (texts, join_pairs(labels, texts))
    )

    assert split < 0.3
    assert together == 0.5


def test_shuffled_labels_stay_with_their_prompt() -> None:
    from nnterp_mcp.experiments.probes import shuffle_labels

    prompts, labels = np.array([3, 3, 5, 5, 5, 8, 9]), np.array([0, 0, 1, 1, 1, 0, 1])
    drawn = [shuffle_labels(labels, prompts, np.random.default_rng(seed)) for seed in range(20)]

    for shuffled in drawn:
        by_prompt = [set(shuffled[prompts == prompt]) for prompt in (3, 5, 8, 9)]
        assert all(len(held) == 1 for held in by_prompt)
        assert sorted(held.pop() for held in by_prompt) == [0, 0, 1, 1]
    assert len({tuple(shuffled) for shuffled in drawn}) > 1


def test_labels_that_mean_nothing_are_not_told_apart() -> None:
    from nnterp_mcp.experiments.probes import deal_folds, make_probe, predict_held_out

    states = np.random.default_rng(0).normal(size=(200, 20)).astype(np.float32)
    labels = np.repeat([0, 1], 100)
    told = [states + labels[:, None] * gap for gap in (0, 2)]
    folds = deal_folds(labels, np.arange(200), 5, 0)
    random, clear = ((predict_held_out(x, labels, folds, make_probe("logistic")) == labels).mean() for x in told)

    assert abs(random - 0.5) < 0.1
    assert clear > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "train_probe takes either prompts or the run of a collect_activations"),
        ({"prompts": GROUPS, "run": "r"}, "train_probe takes either prompts or the run"),
        ({"prompts": CITIES}, "a probe tells groups apart: give two or more"),
        ({"run": "r", "positions": 1}, "positions was settled when r collected its states"),
        ({"run": "r", "site": "keys"}, "site was settled when r collected its states"),
        ({"prompts": GROUPS, "site": "keys", "save_as": "v"}, "at layers_output, and these are 2 at keys"),
        ({"prompts": {"a": "x", "b": "y", "c": "z"}, "save_as": "v"}, "the direction between two groups at layers_out"),
        ({"prompts": GROUPS, "method": "forest"}, "method: input should be 'logistic', 'ridge'"),
        ({"prompts": GROUPS, "folds": 1}, "folds: input should be greater than or equal to 2, not 1"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SPEC.parse(arguments)


def made_result(count: int = 32, **changes: Any) -> TrainProbeResult:
    card = VectorCard(
        name="joy",
        model="smollm2-135m",
        identity=ModelIdentity(architecture="LlamaForCausalLM", hidden_size=576, fingerprint="0123456789abcdef"),
        method="logistic probe",
        tool="train_probe",
        layers=list(range(count)),
        norms=[8.125] * count,
        request={},
        versions={},
        made="2026-01-01T00:00:00.000+00:00",
    )
    probed = [
        ProbedLayer(
            layer=layer,
            accuracy=0.675 + layer / 200,
            low=0.5126 + layer / 200,
            high=0.8123 + layer / 200,
            shuffled=[0.475, 0.55, 0.525, 0.425, 0.625],
        )
        for layer in range(count)
    ]
    groups = [ProbedGroup(name=name, prompts=20, rows=20, tokens=6.25) for name in ("positive", "negative")]
    fields: dict[str, Any] = {
        "model": "smollm2-135m",
        "method": "logistic",
        "site": "layers_output",
        "groups": groups,
        "texts": 40,
        "width": 576,
        "folds": 5,
        "majority": 0.5,
        "length": 0.55,
        "layers": probed,
        "interventions": [],
        "run": None,
        "vector": card,
    }
    return TrainProbeResult.model_validate(fields | changes)


@pytest.mark.parametrize("case", ["saved", "warned", "chance", "reversed"])
def test_says(snapshot: SnapshotAssertion, case: str) -> None:
    unlike = [
        ProbedGroup(name="positive", prompts=30, rows=60, tokens=9.5),
        ProbedGroup(name="negative", prompts=10, rows=20, tokens=6.25),
    ]
    chance = [ProbedLayer(layer=None, accuracy=0.525, low=0.37, high=0.67, shuffled=[0.5, 0.6])]
    reversed_ = ProbedLayer(layer=0, accuracy=0.3, low=0.18, high=0.45, shuffled=[0.5, 0.6])
    changes: dict[str, dict[str, Any]] = {
        "saved": {"replaced": "2025-01-01T00:00:00.000+00:00"},
        "warned": {"groups": unlike, "majority": 0.75, "vector": None},
        "reversed": {
            "layers": [reversed_.model_copy(update={"layer": layer}) for layer in (0, 1, 2, 5)],
            "vector": None,
            "paired": True,
        },
        "chance": {"layers": chance, "vector": None, "site": "token_embeddings", "texts": 600},
    }
    assert SPEC.digest(made_result(**changes[case])).text() == snapshot


@pytest.mark.smollm2
def test_answers_are_small(count_tokens: Callable[[object], int]) -> None:
    for layers in (1, 32, 80):
        answer = SPEC.digest(made_result(layers, replaced="2025-01-01T00:00:00.000+00:00"))
        assert count_tokens(answer.text()) <= 900
        assert count_tokens(rounded(answer.structured())) <= 1000


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_probe_of_the_default_model_reads_and_steers(smollm2_folder: Path, tmp_path: Path) -> None:
    import torch

    from nnterp_mcp.model.standardized import StandardizedTransformer
    from tests.engine.plain import FAMILIES, Plain

    bench = Bench("smollm2-135m", Settings(data=tmp_path), StandardizedTransformer(str(smollm2_folder)))
    result = train(bench, prompts=SENTIMENT, layers="3::3", folds=5, shuffles=5, save_as="sentiment")
    print(SPEC.digest(result).text())
    best = max(result.layers, key=lambda layer: layer.accuracy)
    shuffled = np.array([layer.shuffled for layer in result.layers])

    assert best.accuracy >= 0.8
    assert best.accuracy > shuffled.max()
    assert abs(shuffled.mean() - 0.5) < 0.1
    layer = 15
    direction = bench.find_vector("sentiment")[layer]
    from transformers import AutoModelForCausalLM

    plain = Plain(AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32), FAMILIES["smollm2-135m"])
    ids = bench.model.tokenizer("I think that this film is")["input_ids"]
    good, bad = (
        bench.model.tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
        for words in (["great", "good", "wonderful"], ["bad", "terrible", "awful"])
    )

    def leaning(factor: float) -> float:
        def add(states: Any) -> None:
            states += factor * direction

        found = plain.probabilities(ids, {("layers_output", layer): add})
        return float((found[[token[0] for token in good]].sum() / found[[token[0] for token in bad]].sum()).log())

    random = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
    towards, away, none = leaning(2), leaning(-2), leaning(0)
    direction = random * (direction.norm() / random.norm())
    print(
        f"log p(good) - log p(bad): {away:.2f}, {none:.2f}, {towards:.2f}; random {leaning(-2):.2f}, {leaning(2):.2f}"
    )
    assert away < none < towards
    assert towards - away > 2 * abs(leaning(2) - leaning(-2))


@pytest.mark.parametrize("method", ["logistic", "ridge", "difference_of_means"])
def test_states_that_do_not_differ_are_told_apart_by_chance_only(method: str, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.settings = bench.settings.model_copy(update={"max_prompts": 12})
    zero = [{"op": "zero", "layers": "all", "site": "layers_output"}]
    kept, _ = collect(bench, prompts=GROUPS, interventions=zero)
    result = train(bench, run=kept, method=method)

    assert result.majority == 0.5
    assert all(layer.accuracy <= 0.5 for layer in result.layers)
    with pytest.raises(InvalidRequest, match="the groups have the same states, so that a probe has no direction"):
        train(bench, run=kept, method=method, save_as="none")


def test_repeated_prompts_do_not_make_a_shuffle_fail(bench: Bench) -> None:
    result = train(bench, prompts={"a": ["x", "x", "x", "x", "y"], "b": ["z", "w"]}, shuffles=20, layers=1)

    assert len(result.layers[0].shuffled) == 20


OTHERS = {
    "city": ["Lima is high", "Quito is green", "Vienna is grand", "Turin is calm"],
    "count": ["ten and two", "four", "nine or ten", "one"],
}


def apply(bench: Bench, name: str, **arguments: Any) -> TrainProbeResult:
    """Applies a saved probe as a worker does."""
    from nnterp_mcp.toolset.train_probe.run import run

    sent = SPEC.parse({"probe": name} | arguments).model_dump(mode="json")
    result = run(bench, SPEC.params.model_validate(sent), Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


@pytest.mark.parametrize("method", ["logistic", "ridge", "difference_of_means"])
def test_a_saved_probe_says_of_other_prompts_what_scikit_learn_says(bench: Bench, plain: Any, method: str) -> None:
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestCentroid

    train(bench, method=method, layers=[1, 3], save_as="kept")
    result = apply(bench, "kept", prompts=OTHERS)

    assert result.applied is not None
    assert (result.layers, result.applied.fitted_texts) == ([], 0)
    labels, others = np.repeat([0, 1], 6), np.repeat([0, 1], 4)
    for layer in result.directions:
        fitted = np.concatenate(states_of(bench, plain, [*CITIES, *COUNTS], layer.layer or 0))
        unseen = np.concatenate(states_of(bench, plain, [*OTHERS["city"], *OTHERS["count"]], layer.layer or 0))
        probe = NearestCentroid() if method == "difference_of_means" else sklearn_probe(method)
        guess = probe.fit(fitted, labels).predict(unseen)
        direction = bench.find_vector("kept")[layer.layer].numpy().astype(np.float64)
        along = unseen @ (direction / np.linalg.norm(direction))
        (pair,) = layer.pairs

        assert layer.accuracy is not None
        assert layer.accuracy.mean == pytest.approx((guess == others).mean())
        assert [group.assigned for group in layer.groups] == pytest.approx(
            [(guess[:4] == 0).mean(), (guess[4:] == 0).mean()]
        )
        assert [group.mean for group in layer.groups] == pytest.approx([along[:4].mean(), along[4:].mean()], rel=1e-4)
        assert pair.auc == pytest.approx(roc_auc_score(others == 0, along))
        assert pair.low <= pair.auc <= pair.high
    assert len(result.rows) == 8


def test_a_saved_vector_is_applied_as_a_direction(bench: Bench, plain: Any) -> None:
    from tests.toolset.test_make_vector import ask

    ask(bench, name="mood", method="mean_difference", positive=CITIES, negative=COUNTS, positions="-2:", layers=[2])
    groups = {"a": OTHERS["count"], "b": OTHERS["city"], "c": CITIES}
    result = apply(bench, "mood", prompts=groups)

    assert result.applied is not None
    (layer,) = result.directions
    direction = bench.find_vector("mood")[2].numpy()
    unit = direction / np.linalg.norm(direction)
    taken = [
        np.stack([rows.mean(0) for rows in states_of(bench, plain, prompts, 2, -2)]) for prompts in groups.values()
    ]
    assert [group.mean for group in layer.groups] == pytest.approx(
        [float((rows @ unit).mean()) for rows in taken], rel=1e-3
    )
    assert (layer.accuracy, layer.threshold, len(layer.pairs)) == (None, None, 3)
    assert result.applied.fitted_texts == len(CITIES)
    assert apply(bench, "mood", prompts=CITIES).directions[0].pairs == []


def test_a_saved_probe_takes_the_states_of_a_run(bench: Bench) -> None:
    train(bench, layers=[1, 2], save_as="kept")
    run_id, _ = collect(bench, prompts=OTHERS, layers=[2, 3])
    recalled, direct = apply(bench, "kept", run=run_id), apply(bench, "kept", prompts=OTHERS, layers=2)

    assert (recalled.applied, recalled.directions) == (direct.applied, direct.directions)
    assert SPEC.figure is not None
    (panel,) = SPEC.figure(direct, {}).panels
    assert isinstance(panel, Curves)
    assert [curve.name for curve in panel.curves] == ["accuracy", "AUC"]
    elsewhere, _ = collect(bench, prompts=OTHERS, site="mlps_output", layers=[2])
    for arguments, message in [
        ({"run": elsewhere}, "kept is a direction at layers_output, and .* kept states at mlps_output"),
        ({"prompts": OTHERS, "site": "mlps_output"}, "kept is a direction at layers_output, not at mlps_output"),
        ({"prompts": OTHERS, "layers": 3}, "kept has no direction at layer 3: it has layers 1-2"),
        ({"prompts": OTHERS, "positions": 0}, "kept was fitted at position last"),
        ({"prompts": OTHERS, "folds": 4}, "folds is for fitting, and the saved probe kept is applied as it is"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            apply(bench, "kept", **arguments)
    with pytest.raises(InvalidRequest, match="has no vector 'none'"):
        apply(bench, "none", prompts=OTHERS)
    other = bench.identity.model_copy(update={"fingerprint": "0", "hidden_size": 8})
    bench.vectors.save(
        bench.vectors.find("kept", bench.identity, "tiny").model_copy(update={"name": "strange", "identity": other}),
        np.ones((2, 8), dtype=np.float32),
    )
    with pytest.raises(InvalidRequest, match=r"'strange' does not belong to tiny .* it was made on tiny .*width 8"):
        apply(bench, "strange", prompts=OTHERS)


@pytest.mark.parametrize("case", ["probe", "vector", "one group"])
def test_says_of_a_saved_probe(bench: Bench, snapshot: SnapshotAssertion, case: str) -> None:
    from tests.toolset.test_make_vector import ask

    train(bench, save_as="kept")
    ask(bench, name="mood", method="mean_difference", positive=CITIES, negative=COUNTS, positions="all")
    name, prompts = {"probe": ("kept", GROUPS | OTHERS), "vector": ("mood", OTHERS), "one group": ("kept", CITIES[:2])}[
        case
    ]
    assert SPEC.digest(apply(bench, name, prompts=prompts)).text() == snapshot
