"""Arguments of `read_run`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nnterp_mcp.contract import Params
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LARGEST_SEED, LONGEST_NAME, MOST_WORDS, decoded, require_at_most, shown
from nnterp_mcp.request.fields import RunId

Format = Literal["table", "csv", "json", "picture"]

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


class ReadRunParams(Params):
    """Which run, and what of it."""

    run_id: RunId
    part: Annotated[
        str,
        Field(
            max_length=LONGEST_NAME,
            description="'answer' (as the tool gave it, with the names of the other parts), a table or an array of the "
            "run, 'result' (what is no table), 'record' (parameters, versions, hashes, times).",
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
        schemas.as_schema({**schemas.array(schemas.TEXT), "maxItems": _MOST_COLUMNS}, "Columns to show (all)."),
    ] = None
    offset: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Rows to pass over.")] = 0
    limit: Annotated[int, Field(ge=1, le=500, description="Rows to show.")] = 20
    format: Annotated[
        Format, Field(description="Of the rows; csv and json give every digit. picture draws the run.")
    ] = "table"
    wait_seconds: Annotated[
        float, Field(ge=0, le=600, description="To wait at most for a run under way (45 or the server's).")
    ] = 45.0
