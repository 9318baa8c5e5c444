"""Arguments of `read_run`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nnterp_mcp.contract import Params
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LARGEST_SEED, LONGEST_NAME, MOST_WORDS, decoded, require_at_most, shown

Format = Literal["table", "csv", "json", "picture"]

_MOST_RUNS = 64
"""Runs that a call may wait for."""

_MOST_COLUMNS = 256
"""Columns that a call may name."""


def _as_filter(value: Any) -> Any:
    """Values by column; each row is compared with each of them."""
    given = decoded(value)
    if isinstance(given, dict):
        require_at_most(_MOST_COLUMNS, given, "where", "columns")
        for column, wanted in given.items():
            require_at_most(MOST_WORDS, wanted if isinstance(wanted, list | str) else (), f"where.{shown(column)}")
    return given


def _as_columns(value: Any) -> Any:
    given = decoded(value)
    require_at_most(_MOST_COLUMNS, given if isinstance(given, list) else (), "columns", "names")
    return given


def _as_run_ids(value: Any) -> Any:
    given = decoded(value)
    require_at_most(_MOST_RUNS, given if isinstance(given, list) else (), "run_id", "ids")
    return [given] if isinstance(given, str) else given


RunIds = Annotated[
    tuple[Annotated[str, Field(max_length=LONGEST_NAME)], ...],
    BeforeValidator(_as_run_ids),
    Field(min_length=1),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.array(schemas.TEXT), maxLength=LONGEST_NAME, maxItems=_MOST_RUNS),
        "The run_id of an answer; of a list, waits until the first run has ended and lists all.",
    ),
]


class ReadRunParams(Params):
    """Which run, and what of it."""

    run_id: RunIds
    part: Annotated[
        str,
        Field(
            max_length=LONGEST_NAME,
            description="'answer', a table or an array that the answer names as a part, 'result' "
            "(the fields that are no tables) or 'record' (parameters, versions, hashes, times).",
        ),
    ] = "answer"
    where: Annotated[
        dict[str, Any],
        BeforeValidator(_as_filter),
        schemas.as_schema(
            {**schemas.OBJECT, "maxProperties": _MOST_COLUMNS},
            'Rows to keep: {"layer": [3, 4], "token": "Par"}; a text matches where it is contained.',
        ),
    ] = Field(default_factory=dict)
    columns: Annotated[
        tuple[Annotated[str, Field(max_length=LONGEST_NAME)], ...] | None,
        BeforeValidator(_as_columns),
        schemas.as_schema(
            {**schemas.array(schemas.TEXT), "maxItems": _MOST_COLUMNS}, "Columns to show; all by default."
        ),
    ] = None
    offset: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Rows to skip from the start.")] = 0
    limit: Annotated[int, Field(ge=1, le=500, description="Rows to show at most.")] = 20
    format: Annotated[
        Format, Field(description="Format of the rows; csv and json give every digit. picture draws the whole run.")
    ] = "table"
    wait_seconds: Annotated[
        float,
        Field(ge=0, le=600, description="Seconds to wait at most for a run under way."),
    ] = 45.0
