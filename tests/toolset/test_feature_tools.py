"""Causal tools on features: what they compute is tested in tests/experiments/features; here are calls and answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.contract import Result, ToolSpec
from nnterp_mcp.display.figure import Curves
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.toolset import specs
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.dictionaries import write
from tests.toolset.test_dictionary_tools import LAYER, bench, given, load  # noqa: F401 - fixtures

TARGETS = {"answer": "a", "wrong": "b"}
PAIR = {"corrupted": {"replace": "France", "with": "Spain"}, "targets": TARGETS}


@pytest.fixture(scope="module")
def dictionary(bench: Bench, given: Path) -> str:  # noqa: F811
    load(
        bench,
        name="causes",
        source=write(given / "causes", f"blocks.{LAYER}.hook_resid_post", bench.model.hidden_size, 24),
    )
    return "causes"


def call(bench: Bench, tool: str, **arguments: Any) -> tuple[ToolSpec, Any]:  # noqa: F811
    from importlib import import_module

    spec = specs()[tool]
    params = spec.params.model_validate(spec.parse(arguments).model_dump(mode="json"))
    result: Result = import_module(f"nnterp_mcp.toolset.{tool}.run").run(bench, params, Job(1, lambda sent: None))
    return spec, spec.result.model_validate_json(result.model_dump_json())


@pytest.mark.parametrize("method", ["direct", "gradient", "patching"])
def test_an_answer_is_attributed_to_features(
    method: str,
    bench: Bench,  # noqa: F811
    dictionary: str,
    count_tokens: Callable[[object], int],
) -> None:
    pair = {"corrupted": PAIR["corrupted"]} if method == "patching" else {}
    spec, result = call(
        bench,
        "attribute",
        prompts=["The capital of France is", "The king of France"],
        targets=TARGETS,
        method=method,
        dictionary=dictionary,
        **pair,
    )
    answer = spec.summarize(result)

    assert result.by == "feature"
    assert {part.kind for part in result.parts} >= {"feature"}
    assert f"L{LAYER} feature " in answer.text()
    assert f'"{dictionary}"' in answer.text()
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000
    if method == "direct":
        assert sum(part.value.mean for part in result.parts) == pytest.approx(result.whole.mean, abs=1e-3)


def test_features_are_patched_next_to_their_controls(
    bench: Bench,  # noqa: F811
    dictionary: str,
    count_tokens: Callable[[object], int],
) -> None:
    cells = [{"site": "features", "dictionary": dictionary, "features": [1, 2, 3]}]
    spec, result = call(bench, "patch_activations", clean="The capital of France is", cells=cells, **PAIR)
    answer = spec.summarize(result)
    found = result.patched_set

    assert found.cells == ["feature 1", "feature 2", "feature 3"]
    assert len(found.directions) == 20
    assert found.controls
    assert "random directions of equal norm" in answer.text()
    assert "random sets of as many features about as active" in answer.text()
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000
    ablated = {"clean": "The capital of France is", "corrupted": {"ablate": "zero"}, "targets": TARGETS}
    text = spec.summarize(call(bench, "patch_activations", cells=cells, **ablated)[1]).text()
    assert 'Zeros in place of features 1, 2, 3 of "causes" together' in text


def test_few_features_are_probed_next_to_the_states(
    bench: Bench,  # noqa: F811
    dictionary: str,
    count_tokens: Callable[[object], int],
) -> None:
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from tests.dictionaries import plain_states

    groups = {
        "places": ["Paris is good", "Rome is in Italy", "the king of France", "in the city of Rome"],
        "numbers": ["one two three", "four five six", "seven and one", "two and six"],
    }
    spec, result = call(bench, "train_probe", prompts=groups, dictionary=dictionary, folds=4, positions="last")
    texts = [text for of_group in groups.values() for text in of_group]
    rows = torch.randn(24, bench.model.hidden_size, generator=torch.Generator().manual_seed(1))
    states = torch.stack([plain_states("llama", prompt.ids, LAYER)[-1] for prompt in bench.encode(texts)])
    features, labels = (states @ rows.T).relu().numpy(), np.repeat([0, 1], 4)
    right = []
    for out in range(4):  # the i-th prompts of both groups are in one fold
        train = np.array([at % 4 != out for at in range(8)])
        apart = abs(features[train & (labels == 0)].mean(0) - features[train & (labels == 1)].mean(0))
        (best,) = np.argsort(-apart)[:1]
        scaler = StandardScaler().fit(features[train][:, [best]])
        probe = LogisticRegression().fit(scaler.transform(features[train][:, [best]]), labels[train])
        right += list(probe.predict(scaler.transform(features[~train][:, [best]])) == labels[~train])
    answer = spec.summarize(result)

    assert [one.count for one in result.sparse] == [1, 2, 4, 8, 16, None]
    assert result.sparse[0].accuracy == pytest.approx(np.mean(right))
    assert all(len(one.features) == one.count for one in result.sparse[:-1])
    assert "the states themselves" in answer.text()
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000
    with pytest.raises(InvalidRequest, match="leave out save_as"):
        call(bench, "train_probe", prompts=groups, dictionary=dictionary, save_as="v")


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "go together": ("attribute", {"prompts": "a b", "targets": TARGETS, "by": "feature"}),
    "attributes by token, feature": (
        "attribute",
        {"prompts": "a b", "targets": TARGETS, "method": "gradient", "by": "head", "dictionary": "causes"},
    ),
    "has no dictionary 'other'": ("attribute", {"prompts": "a b", "targets": TARGETS, "dictionary": "other"}),
    "feature 24 does not exist": (
        "patch_activations",
        {"clean": "of France", "cells": [{"site": "features", "dictionary": "causes", "features": [24]}], **PAIR},
    ),
    "leave out complement": (
        "patch_activations",
        {
            "clean": "of France",
            "cells": [{"site": "features", "dictionary": "causes", "features": 2}],
            "complement": True,
            **PAIR,
        },
    ),
    "without other cells": (
        "patch_activations",
        {"clean": "of France", "cells": ["L1H0", {"site": "features", "dictionary": "causes", "features": 2}], **PAIR},
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_features_is_refused(said: str, bench: Bench, dictionary: str) -> None:  # noqa: F811
    tool, arguments = WRONG[said]
    with pytest.raises(InvalidRequest, match=said):
        call(bench, tool, **arguments)


def test_a_generation_with_edited_features_has_its_controls(
    bench: Bench,  # noqa: F811
    dictionary: str,
    count_tokens: Callable[[object], int],
) -> None:
    """Each control is what the caller would get from that edit alone."""
    edit = {"op": "add", "site": "features", "dictionary": dictionary, "features": [1, 2], "value": 4.0}
    texts = ["The capital of France is", "The king"]
    spec, result = call(bench, "generate", prompts=texts, max_new_tokens=3, interventions=[edit])
    drawn = result.controls.matched
    effects = [one.effects for one in result.texts]

    assert len(drawn) == result.controls.directions == 5
    assert all(len(effects_of) == 11 and min(effects_of) > 0 for effects_of in effects)
    assert not {1, 2} & {feature for features in drawn for feature in features}
    for number, alone in ((1, {"features": drawn[0]}), (6, {"random": 0})):
        run = "matched" if number == 1 else "direction"
        by_hand = call(bench, "generate", prompts=texts, max_new_tokens=3, interventions=[edit | alone])[1]
        assert [getattr(one, run).tokens for one in result.texts] == [one.edited.tokens for one in by_hand.texts]
        if number == 1:
            assert [one.effects[0] for one in by_hand.texts] == pytest.approx([of[number] for of in effects], rel=1e-4)
        else:
            assert by_hand.controls is None
    answer = spec.summarize(result)
    assert "5 sets of matched features" in answer.text()
    assert "5 random directions of equal norm" in answer.text()
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000


def test_scores_with_edited_features_have_their_controls(bench: Bench, dictionary: str) -> None:  # noqa: F811
    edit = {"op": "zero", "site": "features", "dictionary": dictionary, "features": 3}
    spec, result = call(bench, "generate", prompts="The king of France", max_new_tokens=0, interventions=[edit])
    (text,) = result.texts

    def mean(scores: list[float]) -> float:
        return sum(scores) / len(scores)

    for number, name in ((0, "edited"), (1, "matched"), (6, "direction")):
        change = mean(getattr(text, name).log_probs) - mean(text.baseline.log_probs)
        assert text.effects[number] == pytest.approx(change, abs=1e-6)
    assert "The mean log-probability changes by" in spec.summarize(result).text()


def test_steering_along_a_row_has_matched_rows_and_random_directions(
    bench: Bench,  # noqa: F811
    dictionary: str,
    count_tokens: Callable[[object], int],
) -> None:
    """The matched runs are those of steering along the rows of these features at the vector's norm."""
    call(bench, "make_vector", name="row", method="decoder_row", positive=f"{dictionary}:4")
    asked = {
        "prompts": ["The capital of France is", "The king"],
        "layers": [1, LAYER],
        "factors": [1, 2],
        "targets": TARGETS,
    }
    spec, result = call(bench, "steer", vector="row", control=True, **asked)
    for vector in ("row", [1.0] * bench.model.hidden_size):
        plain = call(bench, "steer", vector=vector, control=vector != "row", **asked)[1]
        assert plain.matched is None
    norm = float(bench.find_vector("row").norm())
    other = result.matched[1]
    call(bench, "make_vector", name="other", method="decoder_row", positive=f"{dictionary}:{other}", norm=norm)
    by_hand = call(bench, "steer", vector="other", **asked)[1]

    assert len(result.matched) == 5
    assert 4 not in result.matched
    assert {run.control for run in result.runs} == {None, *range(10)}
    found = [run.kl for run in result.runs if run.control == 1]
    assert found == pytest.approx([run.kl for run in by_hand.runs if run.layer is not None], rel=1e-4)
    answer = spec.summarize(result)
    assert "5 matched features and 5 random directions of equal norm (by 2 sd)" in answer.text()
    assert max(count_tokens(answer.text()), count_tokens(answer.structured())) <= 1000
    assert spec.figure is not None
    panel = spec.figure(result, {}).panels[0]
    assert isinstance(panel, Curves)
    assert [curve.name for curve in panel.curves] == [
        f"layer {at}{kind}" for at in (1, LAYER) for kind in ("", ", matched")
    ]
