"""Arguments of `compare_models`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_STRING, LONGEST_TEXT, MOST_PROMPTS, decoded
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.prompts import Prompts

ComparedPart = Literal["predictions", "activations", "weights", "difference", "patching", "texts"]
PARTS: tuple[ComparedPart, ...] = ("predictions", "activations", "weights", "difference", "patching", "texts")

_PROMPTS = schemas.union(
    schemas.OBJECT, schemas.TEXT, schemas.array(schemas.TEXT), maxLength=LONGEST_TEXT, maxItems=MOST_PROMPTS
)


def _as_parts(value: Any) -> Any:
    """One part may stand for a list of it."""
    given = decoded(value)
    return [given] if isinstance(given, str) else given


class CompareModelsParams(ModelParams):
    """The two models, another fine-tune as a control, and what to compare."""

    base: Annotated[
        str | None,
        Field(max_length=LONGEST_STRING, description="Handle to compare with; by default it without adapter."),
    ] = None
    other: Annotated[
        str | None,
        Field(max_length=LONGEST_STRING, description="Another fine-tune of base, as control."),
    ] = None
    prompts: Annotated[Prompts | None, schemas.as_schema(_PROMPTS, "Neutral texts by default.")] = None
    parts: Annotated[
        Annotated[tuple[ComparedPart, ...], Field(min_length=1, max_length=len(PARTS))] | None,
        BeforeValidator(_as_parts),
        Field(description="What to compare; all by default."),
    ] = None
    interventions: Interventions = ()
    plot: Plot = False
