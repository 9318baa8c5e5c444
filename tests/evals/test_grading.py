from __future__ import annotations

from typing import Any

import pytest

from evals.grading import grade, grade_all, score
from evals.question import Head, Number, Parts, Question
from evals.tables import grade_table, table


def _never(plain: Any) -> int:
    raise AssertionError("grading computes nothing")


SIZE = Question("size", "How large?", Number(absolute=0.1), _never)
HEAD = Question("head", "Which head?", Head(), _never)
RIGHT = {"size": 2.0, "head": "L3H7"}


@pytest.mark.parametrize(
    ("given", "verdict"), [(2.05, "right"), (2, "right"), (2.2, "wrong"), ("two", "unreadable"), (None, "missing")]
)
def test_a_verdict_says_what_an_answer_is_worth(given: object, verdict: str):
    assert grade(SIZE, given, 2.0).verdict == verdict


def test_an_unreadable_answer_is_told_its_form():
    assert grade(HEAD, [3, 7], "L3H7").reason.startswith('the answer is a head, written "L3H7"')


def test_the_parts_that_are_wrong_are_named():
    both = Question("both", "Which head, and how large?", Parts({"head": Head(), "size": Number(absolute=0.1)}), _never)
    found = grade(both, {"head": "L3H7", "size": 4}, {"head": "L3H7", "size": 2.0})
    assert (found.verdict, found.reason) == ("wrong", "wrong: size")
    assert grade(both, {"head": "L3H7", "size": 2.05}, {"head": "L3H7", "size": 2.0}).verdict == "right"


def test_answers_are_found_by_the_names_of_questions_in_the_order_of_questions():
    grades = grade_all([SIZE, HEAD], {"head": "l3h7"}, RIGHT)
    assert [one.verdict for one in grades] == ["missing", "right"]
    assert score(grades) == "1 of 2 questions answered right."


def test_an_answer_to_no_question_is_refused():
    with pytest.raises(ValueError, match="there is no question 'haed': the questions are size, head"):
        grade_all([SIZE, HEAD], {"haed": "L3H7"}, RIGHT)


def test_what_is_right_shows_only_when_revealed():
    grades = grade_all([SIZE, HEAD], {"size": 9.5, "head": 3}, RIGHT)
    hidden, shown = grade_table(grades, reveal=False), grade_table(grades, reveal=True)
    assert "wrong" in hidden
    assert "not 3" in hidden
    assert "| 2 " not in hidden
    assert "| 2 " in shown


def test_a_table_is_markdown_with_columns_of_one_width():
    lines = table(["name", "n"], [["a|b", "1"], ["longer name", "22"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|-------------|----|"
    assert lines[2].startswith("| a\\|b ")
