from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evals.answers import model_folders, right_answers
from evals.grading import grade
from evals.question import SMOLLM2, Choice, Count, Form, Head, Number, Parts, Question, Token, Value
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
    first = right_answers(asked, {SMOLLM2: folder}, tmp_path / "cache")
    assert right_answers(asked, {SMOLLM2: folder}, tmp_path / "cache") == first == {"depth": computed[0]}
    assert len(computed) == 1
    (folder / "generation_config.json").write_text("{ }")
    right_answers(asked, {SMOLLM2: folder}, tmp_path / "cache")
    assert len(computed) == 2, "other files, the same answers"


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    from nnterp_mcp.settings import Settings

    return model_folders(Settings().cache / "evals")


@pytest.fixture(scope="module")
def right(folders: dict[str, Path]) -> dict[str, Value]:
    from nnterp_mcp.settings import Settings

    return right_answers(QUESTIONS, folders, Settings().cache / "evals")


@pytest.fixture(scope="module")
def damaged(folders: dict[str, Path]) -> Callable[[str], Plain]:
    """A model with its layers in reverse order and its embeddings halved, by its name."""

    @cache
    def load(name: str) -> Plain:
        import torch

        from evals.plain import Plain

        plain = Plain.load(folders[name])
        plain.model.model.layers = torch.nn.ModuleList(reversed(plain.model.model.layers))
        plain.model.get_input_embeddings().weight.mul_(0.5)
        return plain

    return load


def _near_misses(form: Form, right: Any) -> list[object]:
    """Answers of the right form that are wrong, but not by much."""
    match form:
        case Parts() as parts:
            misses = {name: _near_misses(part, right[name]) for name, part in parts.forms.items()}
            return [{**right, name: wrong} for name, all_wrong in misses.items() for wrong in all_wrong]
        case Number() as form:
            off = 1.1 * max(form.absolute, form.relative * abs(float(right)))
            return [float(right) + off, float(right) - off]
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
            raise AssertionError(f"{form} has no near misses here")


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_an_answer_has_its_form_and_its_near_misses_are_refused(question: Question, right: dict[str, Value]):
    answer = right[question.name]
    assert grade(question, answer, answer).verdict == "right"
    for wrong in _near_misses(question.form, answer):
        assert grade(question, wrong, answer).verdict in {"wrong", "unreadable"}, wrong


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_another_model_has_another_answer(
    question: Question, right: dict[str, Value], damaged: Callable[[str], Plain], tiny: Callable[..., Path]
):
    from evals.plain import Plain

    other = damaged(question.model)
    asked = Plain(other.model, Plain.load(tiny("llama")).tokenizer) if question.name == "token-count" else other
    assert grade(question, question.compute(asked), right[question.name]).verdict == "wrong"
