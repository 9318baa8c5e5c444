"""Tables of answers, read by the names of their columns."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def rows(answer: dict[str, Any], table: str = "table") -> list[Row]:
    """The rows of a table of an answer."""
    content = answer[table]
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def top_token(row: Row) -> str:
    """The first of a row's top tokens."""
    return row["top tokens"][0][0]
