"""The planted models have the mechanism that they are said to have, and those without one do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evals.question import Parts
from evals.questions import claims, finetunes
from evals.questions.planted import NOT_CAUSE, PAIRED, QUESTIONS, REPEATED, SAID

if TYPE_CHECKING:
    from evals.plain import Plain


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from evals.planted import save_planted

    return save_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Plain]:
    from evals.plain import Plain

    return {name: Plain.load(folder) for name, folder in folders.items()}


def test_a_model_is_the_same_whenever_it_is_saved(folders: dict[str, Path], tmp_path: Path):
    from evals.planted import save_planted

    for name, folder in save_planted(tmp_path).items():
        assert (folder / "model.safetensors").read_bytes() == (folders[name] / "model.safetensors").read_bytes()


def test_copying_takes_a_head_that_looks_back_and_one_that_finds_what_came_next(models: dict[str, Plain]):
    plain = models["planted-copier"]
    patterns = plain.patterns(REPEATED)
    found = REPEATED.split()
    assert plain.text(plain.logits(REPEATED)[-1].argmax()) == found[found.index(found[-1]) + 1]
    assert [float(patterns[0, 2, at, at - 1]) for at in range(1, len(found))] == pytest.approx([1] * (len(found) - 1))
    assert float(patterns[1, 1, -1, found.index(found[-1]) + 1]) == pytest.approx(1)


def test_the_head_that_attends_most_to_the_answer_is_not_the_one_that_matters(models: dict[str, Plain]):
    patterns = models["planted-speaker"].patterns(SAID)[:, :, -1, SAID.split().index("fox")]
    assert float(patterns[1, 0]) == float(patterns.max())
    assert float(patterns[0, 1]) > 0.5


def test_the_model_that_parrots_has_a_head_that_attends_as_if_it_copied(models: dict[str, Plain]):
    for clean, _, answer, _ in claims.PARROT:
        plain = models["planted-parrot"]
        assert float(plain.patterns(clean)[3, 1, -1, clean.split().index(answer)]) == pytest.approx(1)
        assert plain.text(plain.logits(clean)[-1].argmax()) == answer


def test_what_looks_copied_is_said_without_any_attention(models: dict[str, Plain]):
    import torch

    plain = models["planted-pairs"]
    silent = {plain.attention(layer): torch.zeros_like for layer in range(plain.depth)}
    assert plain.text(plain.logits(PAIRED, silent)[-1].argmax()) == "dog"


def test_the_answers_are_those_that_the_weights_were_set_for(models: dict[str, Plain]):
    asked = (*QUESTIONS, *claims.QUESTIONS, *finetunes.QUESTIONS)
    right = {question.name: question.compute(models[question.model]) for question in asked}
    expected = {
        "copying-pair": {"first": "L0H2", "second": "L1H1"},
        "copying-route": {"route": "keys"},
        "planted-suppressor": {"head": "L1H3"},
        "attended-or-used": {"head": "L1H0", "verdict": NOT_CAUSE},
        "readable-or-causal": {"amount": 0.0, "causal": "colour"},
        "looks-copied": {"verdict": "attention does not copy it"},
        "no-circuit": {"verdict": "no head dominates"},
        "claim-of-two-heads": {"verdict": "supported"},
        "claim-from-attention": {"necessity": 0.0, "sufficiency": 0.0, "verdict": "not supported"},
        "edge-that-carries": {"route": "keys"},
        "edge-from-attention": {"change": 0.0, "verdict": claims.NOT_CARRIED},
        "finetune-place": {"layer": 2, "token": "gold"},
        "finetune-largest-weights": {"layer": 1, "verdict": finetunes.CARRIES_NOT},
    }
    assert {*right} == {*expected}
    for question in asked:
        answer = right[question.name]
        assert isinstance(answer, dict)
        assert isinstance(question.form, Parts)
        assert question.form.read(answer) == answer
        assert expected[question.name].items() <= {**answer}.items(), question.name
