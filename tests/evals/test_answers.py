from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evals.answers import model_folder, right_answers
from evals.grading import grade
from evals.question import Choice, Count, Head, Number, Question, Token, Value
from evals.questions import QUESTIONS

if TYPE_CHECKING:
    from evals.plain import Plain


def test_answers_are_computed_once_for_the_files_of_a_model(tiny: Callable[..., Path], tmp_path: Path):
    folder, computed = tmp_path / "model", list[int]()
    shutil.copytree(tiny("llama"), folder)

    def depth(plain: Plain) -> int:
        computed.append(plain.depth)
        return plain.depth

    asked = [Question("depth", "How many layers?", Count("layers"), depth)]
    first = right_answers(asked, folder, tmp_path / "cache")
    assert right_answers(asked, folder, tmp_path / "cache") == first == {"depth": computed[0]}
    assert len(computed) == 1
    (folder / "generation_config.json").write_text("{ }")
    right_answers(asked, folder, tmp_path / "cache")
    assert len(computed) == 2, "other files, the same answers"


@pytest.fixture(scope="module")
def right() -> dict[str, Value]:
    from nnterp_mcp.settings import Settings

    return right_answers(QUESTIONS, model_folder(), Settings().cache / "evals")


@pytest.fixture(scope="module")
def damaged(smollm2_folder: Path) -> Plain:
    """The model with its layers in reverse order."""
    import torch

    from evals.plain import Plain

    plain = Plain.load(smollm2_folder)
    plain.model.model.layers = torch.nn.ModuleList(reversed(plain.model.model.layers))
    return plain


def _near_misses(question: Question, right: Value) -> list[object]:
    """Answers of the right form that are wrong, but not by much."""
    match question.form:
        case Number() as form:
            off = 1.1 * max(form.absolute, form.relative * abs(float(right)))
            return [float(right) + off, float(right) - off, 0.0]
        case Count():
            return [int(right) + 1, max(int(right) - 1, 0) if int(right) else 2]
        case Head():
            layer, head = str(right)[1:].split("H")
            return [f"L{int(layer) + 1}H{head}", f"L{layer}H{int(head) + 1}"]
        case Choice() as form:
            return [option for option in form.options if option != right]
        case Token():
            return [f"{right}x", str(right).strip()[:-1] or "x"]
        case _:
            raise AssertionError(f"{question.form} has no near misses here")


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_an_answer_has_its_form_and_its_near_misses_are_refused(question: Question, right: dict[str, Value]):
    answer = right[question.name]
    assert grade(question, answer, answer).verdict == "right"
    for wrong in _near_misses(question, answer):
        assert grade(question, wrong, answer).verdict in {"wrong", "unreadable"}, wrong


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_another_model_has_another_answer(
    question: Question, right: dict[str, Value], damaged: Plain, tiny: Callable[..., Path]
):
    from evals.plain import Plain

    asked = Plain(damaged.model, Plain.load(tiny("llama")).tokenizer) if question.name == "token-count" else damaged
    assert grade(question, question.compute(asked), right[question.name]).verdict == "wrong"
