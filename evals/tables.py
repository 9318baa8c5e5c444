"""What the commands print: tables that are Markdown, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evals.grading import Grade
from evals.solver import Solved

_COLUMNS = ("question", "tools", "calls", "sent", "read as text", "read as structured", "grade")


def solved_table(solved: Sequence[Solved], grades: Sequence[Grade]) -> str:
    """The calls and tokens of each question, with its grade, and their sums."""
    rows = [
        [one.name, _tools(one), *map(str, _costs([one])), given.verdict]
        for one, given in zip(solved, grades, strict=True)
    ]
    right = f"{sum(given.verdict == 'right' for given in grades)} of {len(grades)}"
    return table(_COLUMNS, [*rows, ["all", "", *map(str, _costs(solved)), right]])


def grade_table(grades: Sequence[Grade], reveal: bool) -> str:
    """The verdict on each answer; what is right only where it is to be revealed."""
    columns = ["question", "answer", "grade", *(["right"] if reveal else [])]
    rows = [
        [one.question.name, _shown(one.given), one.reason or one.verdict, *([_shown(one.right)] if reveal else [])]
        for one in grades
    ]
    return table(columns, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned."""
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in (columns, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|-{rule}-|", *(f"| {line} |" for line in lines[1:])])


def _tools(solved: Solved) -> str:
    counts = Counter(call.tool for call in solved.calls)
    return ", ".join(name if count == 1 else f"{name} × {count}" for name, count in counts.items())


def _costs(solved: Sequence[Solved]) -> tuple[int, int, int, int]:
    """Calls, tokens sent, tokens read as text, tokens read as structured content."""
    calls = [call for one in solved for call in one.calls]
    return (
        len(calls),
        sum(call.sent for call in calls),
        sum(call.text for call in calls),
        sum(call.structured for call in calls),
    )


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
