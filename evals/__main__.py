"""`python -m evals`: the questions for any agent, the grading of its answers, and the reference solver."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from evals.answers import model_folders, right_answers
from evals.grading import Grade, grade_all, score
from evals.planted import save_planted
from evals.question import SMOLLM2, Question, Value
from evals.questions import QUESTIONS
from evals.solver import Solved, solve
from evals.tables import grade_table, solved_table
from evals.tools import token_counter
from nnterp_mcp.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "eval.md"
_CACHE = Settings().cache / "evals"
_BEGIN, _END = "<!-- solved: begin -->", "<!-- solved: end -->"

INSTRUCTIONS = (
    'Load the model that a question names, by the name or folder given for it under "models", and answer each question '
    "by experiments with the tools. Texts stand in quotes, which are no part of them. Layers, heads and positions are "
    "counted from 0, logarithms are natural. Write a JSON object that gives for "
    'each question\'s name its answer in the form that the question asks for: {"leading-layer": 12, …}; leave out what '
    "you could not find."
)
"""What an agent is told beside the questions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 if it did what it should, and every answer that it graded is right."""
    given = _parser().parse_args(arguments)
    if given.command == "questions":
        print(json.dumps(questions(QUESTIONS, save_planted(_CACHE / "planted")), ensure_ascii=False, indent=1))
        return 0
    return _grade(given.answers, given.reveal) if given.command == "grade" else _solve(given.only, given.page)


def questions(asked: Sequence[Question], planted: Mapping[str, Path]) -> dict[str, Any]:
    """The questions as an agent gets them, with the name or folder by which each model is loaded."""
    return {
        "models": {SMOLLM2: SMOLLM2, **{name: str(folder) for name, folder in planted.items()}},
        "instructions": INSTRUCTIONS,
        "questions": [
            {
                "name": question.name,
                "model": question.model,
                "question": question.text,
                "answer": question.form.describe(),
            }
            for question in asked
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evals", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("questions", help="print the questions as JSON")
    grading = commands.add_parser("grade", help="grade answers, a JSON object by the questions' names")
    grading.add_argument("answers", type=Path, metavar="ANSWERS.json")
    grading.add_argument("--reveal", action="store_true", help="show what is right, too")
    solving = commands.add_parser("solve", help="have the reference solver answer by the tools")
    solving.add_argument("--only", nargs="+", choices=[question.name for question in QUESTIONS], metavar="NAME")
    solving.add_argument("--page", action="store_true", help="write the table into docs/eval.md")
    return parser


def _grade(path: Path, reveal: bool) -> int:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError('the answers must be a JSON object by the questions\' names, {"token-count": 3, …}')
        grades = grade_all(QUESTIONS, given, _right(QUESTIONS))
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    print(grade_table(grades, reveal))
    return _finish(grades)


def _solve(names: Sequence[str] | None, page: bool) -> int:
    asked = [question for question in QUESTIONS if names is None or question.name in names]
    folders = model_folders(_CACHE)
    solved = anyio.run(solve, asked, folders, token_counter(folders[SMOLLM2]), _say)
    grades = grade_all(asked, {one.name: one.answer for one in solved}, _right(asked))
    shown = solved_table(solved, grades)
    print(shown)
    _explain(solved, grades)
    if page:
        PAGE.write_text(put_between(PAGE.read_text(encoding="utf-8"), shown), encoding="utf-8")
    return _finish(grades)


def put_between(text: str, shown: str) -> str:
    """A page with another table between its marks."""
    return re.sub(f"(?<={_BEGIN}\n).*(?=\n{_END})", lambda found: shown, text, flags=re.DOTALL)


def _right(asked: Sequence[Question]) -> dict[str, Value]:
    return right_answers(asked, model_folders(_CACHE), _CACHE, _say)


def _explain(solved: Sequence[Solved], grades: Sequence[Grade]) -> None:
    """What is right where the solver is not."""
    for one, given in zip(solved, grades, strict=True):
        if given.verdict != "right":
            print(f"{one.name}: answered {given.given!r}, right is {given.right!r} {one.failure}".rstrip())


def _finish(grades: Sequence[Grade]) -> int:
    print(f"\n{score(grades)}")
    return int(any(one.verdict != "right" for one in grades))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
