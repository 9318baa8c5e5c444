"""Arguments of `features`."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_RANGE, LONGEST_TEXT, MOST_PROMPTS, decoded, shown, whole
from nnterp_mcp.request.dictionaries import DictionaryName
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Positions
from nnterp_mcp.request.prompts import Prompt, PromptGroups

_LARGEST = 1_000_000
"""A layer or a feature, at most; what a dictionary lacks is refused by name."""

MOST_FEATURES = 64
"""Features that a call can name."""

_PROMPTS = schemas.union(
    schemas.OBJECT, schemas.TEXT, schemas.array(schemas.TEXT), maxLength=LONGEST_TEXT, maxItems=MOST_PROMPTS
)
"""The commonest forms of groups; the others are taken too, and an agent pays for each that is listed."""

_POSITIONS = schemas.union(schemas.INTEGER, schemas.TEXT, maxLength=LONGEST_RANGE)

_GROUPS: TypeAdapter[dict[str, tuple[Prompt, ...]]] = TypeAdapter(PromptGroups)


def _as_groups(value: Any) -> dict[str, tuple[Prompt, ...]]:
    return _GROUPS.validate_python(value) if value not in (None, (), [], {}, "[]", "{}") else {}


def _as_features(value: Any) -> Any:
    given = whole(decoded(value))
    items = [given] if isinstance(given, int) else given
    if not isinstance(items, list | tuple):
        raise ValueError(f"features must be an integer or a list of integers, not {shown(value)}")
    return tuple(whole(item) for item in items)


class FeaturesParams(ModelParams):
    """A dictionary, and the prompts or the features to read."""

    dictionary: Annotated[DictionaryName, Field(description="Its name, from load_features.")]
    prompts: Annotated[
        dict[str, tuple[Prompt, ...]],
        BeforeValidator(_as_groups),
        schemas.as_schema(_PROMPTS, 'Texts, or two groups to compare, {"a": [...], "b": [...]}.'),
        Field(default_factory=dict),
    ]
    features: Annotated[
        tuple[Annotated[int, Field(ge=0, le=_LARGEST * 100, strict=True)], ...],
        BeforeValidator(_as_features),
        Field(max_length=MOST_FEATURES),
        WithJsonSchema(
            schemas.array(schemas.INTEGER) | {"maxItems": MOST_FEATURES, "description": "Features to describe."}
        ),
    ] = ()
    layer: Annotated[int | None, Field(ge=0, le=_LARGEST, description="Of several.")] = None
    positions: Annotated[Positions, schemas.as_schema(_POSITIONS, "Tokens to read.")] = ("all",)
    interventions: Interventions = ()
    plot: Plot = False

    @model_validator(mode="after")
    def _require_something(self) -> Self:
        if not self.prompts and not self.features:
            raise ValueError("features needs prompts to read, features to describe, or both")
        if len(self.prompts) > 2:
            raise ValueError(f"features compares two groups of prompts, not {len(self.prompts)}")
        return self
