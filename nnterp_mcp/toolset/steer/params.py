"""Arguments of `steer`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.formatting import plural
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import Given, decoded, shown
from nnterp_mcp.request.fields import BriefTargets, Plot, TopK
from nnterp_mcp.request.named_sets import groups_of
from nnterp_mcp.request.operations import Interventions, TokenDifference, Vector
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.prompts import Prompts

_MOST_FACTORS = 32


def _as_factors(value: Any) -> tuple[float, ...]:
    given = decoded(value, "[{-0123456789")
    items = given if isinstance(given, list | tuple) else [given]
    if not 0 < len(items) <= _MOST_FACTORS or not all(
        isinstance(item, int | float) and not isinstance(item, bool) for item in items
    ):
        raise ValueError(f"factors must be a number or a list of 1 to {_MOST_FACTORS} numbers, not {shown(value)}")
    return tuple(sorted({float(item) for item in items}))


Factors = Annotated[
    tuple[float, ...],
    BeforeValidator(_as_factors),
    schemas.as_schema(
        schemas.union(schemas.NUMBER, schemas.array(schemas.NUMBER), maxItems=_MOST_FACTORS),
        "Factors, up to 32.",
    ),
]


class PromptContrast(Given):
    """The direction from one group of prompts to another: the difference of their mean states at the last token."""

    positive: Prompts
    negative: Prompts


_VECTOR: TypeAdapter[str | TokenDifference | tuple[float, ...]] = TypeAdapter(Vector)


def _as_steering_vector(value: Any) -> Any:
    given = decoded(groups_of(value))
    if isinstance(given, PromptContrast):
        return given
    groups = {name: decoded(part) for name, part in given.items()} if isinstance(given, dict) else {}
    if not groups or not all(isinstance(part, list | tuple) for part in groups.values()):
        return _VECTOR.validate_python(given)
    if len(groups) != 2:
        raise ValueError(f"vector takes two groups of prompts, and {plural(len(groups), 'group')} came")
    if groups.keys() != {"positive", "negative"}:
        groups = dict(zip(("positive", "negative"), groups.values(), strict=True))
    return PromptContrast.model_validate(groups)


SteeringVector = Annotated[
    str | TokenDifference | tuple[float, ...] | PromptContrast,
    BeforeValidator(_as_steering_vector),
    schemas.as_schema(
        schemas.VECTOR,
        'A name from make_vector; {"positive": " love", "negative": " hate"} (difference of token embeddings; "of": '
        '"unembeddings"); two groups of prompts, as in train_probe (mean state of the first - second, last token); or '
        "numbers.",
    ),
]


class SteerParams(ModelParams):
    """The vector, and the layers, positions and factors at which it is added."""

    prompts: Prompts
    vector: SteeringVector
    layers: Layers
    factors: Factors
    positions: Positions = ("all",)
    max_new_tokens: Annotated[
        int, Field(ge=0, le=256, description="Tokens generated per run; 0 reads the next token alone.")
    ] = 0
    top_k: TopK = 3
    targets: BriefTargets = Field(default_factory=dict)
    control: Annotated[bool, Field(description="Repeat with 5 random directions of equal norm.")] = False
    interventions: Interventions = ()
    plot: Plot = False
