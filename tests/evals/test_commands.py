from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evals.__main__ import PAGE, main, put_between, questions
from evals.planted import PLANTS
from evals.question import Parts
from evals.questions import QUESTIONS
from evals.solutions import SOLUTIONS


def test_there_are_look_ups_and_investigations_each_with_a_name_of_its_own_and_a_solution():
    names = [question.name for question in QUESTIONS]
    assert sum(isinstance(question.form, Parts) for question in QUESTIONS) >= 12
    assert len(names) >= 40
    assert len({*names}) == len(names)
    assert {*SOLUTIONS} == {*names}


def test_the_questions_are_json_that_any_agent_reads(capsys: pytest.CaptureFixture[str]):
    assert main(["questions"]) == 0
    printed = json.loads(capsys.readouterr().out)
    folders = {name: Path(folder) for name, folder in printed["models"].items() if name in PLANTS}
    assert printed == questions(QUESTIONS, folders)
    assert all((folder / "model.safetensors").exists() for folder in folders.values())
    assert {question.model for question in QUESTIONS} == {*printed["models"]}
    for asked, question in zip(printed["questions"], QUESTIONS, strict=True):
        assert {*asked} == {"name", "model", "question", "answer"}
        assert asked["question"] == question.text
        assert asked["answer"] == question.form.describe()


@pytest.mark.parametrize(("content", "said"), [("[1, 2]", "must be a JSON object"), ("{", "Expecting property name")])
def test_answers_that_cannot_be_read_are_an_error(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "answers.json"
    path.write_text(content)
    assert main(["grade", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert main(["grade", str(tmp_path / "none.json")]) == 2


def test_the_page_holds_a_row_of_each_question_and_of_no_other():
    rows = re.findall(r"^\| ([a-z-]+) +\|.*\| (right|[a-z]+) +\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [row for row in rows if row[0] not in {"question", "all"}]
    assert [name for name, _ in rows] == [question.name for question in QUESTIONS], "run: python -m evals solve --page"
    assert {verdict for _, verdict in rows} == {"right"}


def test_a_table_takes_the_place_of_the_one_before():
    page = PAGE.read_text(encoding="utf-8")
    once = put_between(page, "| a |")
    assert "| a |" in once
    assert "leading-layer |" not in once
    assert put_between(once, "| \\1 |") == once.replace("| a |", "| \\1 |")


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
def test_answers_are_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"token-count": 12, "induction-head": "L0H0", "direct-mlp": "many"}))
    assert main(["grade", str(path)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"\| token-count +\| 12 +\| right", said)
    assert re.search(r"\| induction-head +\| 'L0H0' +\| wrong", said)
    assert re.search(r"\| direct-mlp +\| 'many' +\| the answer is a whole number", said)
    assert f"1 of {len(QUESTIONS)} questions answered right." in said
