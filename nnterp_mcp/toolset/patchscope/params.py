"""Arguments of `patchscope`."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import decoded, require_at_most, shown
from nnterp_mcp.request.fields import BriefTargets, Plot, TopK
from nnterp_mcp.request.lenses import FittedLens
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers, LayerSpec, Positions, PositionSpec, parse_indices
from nnterp_mcp.request.prompts import Prompt, Prompts, as_prompt, require_messages
from nnterp_mcp.request.vectors import LONGEST_VECTOR, check_name

_POSITIONS: TypeAdapter[tuple[PositionSpec, ...]] = TypeAdapter(Positions)
_MOST_VECTORS = 64
"""Vectors that a call reads."""


def _as_target(value: Any) -> Prompt:
    require_messages(decoded(value))
    try:
        return as_prompt(value)
    except ValueError:
        raise ValueError(
            "target_prompt must be one text, the messages {role, content} of one chat, 'repeat' or 'repeat_chat', "
            f"not {shown(value)}"
        ) from None


def _as_target_position(value: Any) -> PositionSpec:
    try:
        (position,) = _POSITIONS.validate_python(value)
    except (ValidationError, ValueError):
        position = "all"
    if position == "all" or (isinstance(position, str) and ":" in position):
        raise ValueError(
            f'target_position must be one integer, \'last\' or {{"text": …, "occurrence": …}}, not {shown(value)}'
        )
    return position


def _as_target_layers(value: Any) -> LayerSpec:
    return parse_indices(value, "target_layers", words=("same", "all"))


def _as_vector_names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    given = decoded(value)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"source_vectors must be the name of a vector or a list of names, not {shown(value)}")
    require_at_most(_MOST_VECTORS, names, "source_vectors", "names")
    return tuple(dict.fromkeys(check_name(name) for name in names))


class PatchscopeParams(ModelParams):
    """The source of the states, and the target that they are put into."""

    source_prompts: Annotated[
        Prompts | None, schemas.as_schema(schemas.PROMPTS, "Text, chat messages, or a list of these.")
    ] = None
    source_vectors: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(_as_vector_names),
        schemas.as_schema(
            schemas.union(schemas.TEXT, schemas.array(schemas.TEXT), maxLength=LONGEST_VECTOR, maxItems=_MOST_VECTORS),
            "Names of vectors from make_vector, in place of source_prompts.",
        ),
    ] = None
    factor: Annotated[float, Field(description="Factor by which source_vectors are multiplied.")] = 1.0
    source_positions: Annotated[
        Positions,
        schemas.as_schema(
            schemas.POSITIONS,
            "Tokens read: an index, 'last', 'all', a range.",
        ),
    ] = ("last",)
    source_layers: Annotated[
        Layers,
        schemas.as_schema(schemas.INDICES, "Layers read: one, a list, a range or 'all'."),
    ] = "all"
    target_prompt: Annotated[
        Prompt,
        BeforeValidator(_as_target),
        schemas.as_schema(
            schemas.PROMPT, "A text or chat; 'repeat' (\"hello hello\\n?\", the paper's) or 'repeat_chat'."
        ),
    ] = "repeat"
    target_position: Annotated[
        PositionSpec,
        BeforeValidator(_as_target_position),
        schemas.as_schema(schemas.POSITION, 'Token that is replaced: an index, \'last\' or {"text": "x"}.'),
    ] = "last"
    target_layers: Annotated[
        LayerSpec,
        BeforeValidator(_as_target_layers),
        schemas.as_schema(
            schemas.INDICES, "'same', one layer, a list paired with source_layers, or a range or 'all' for a grid."
        ),
    ] = "same"
    top_k: TopK = 3
    targets: BriefTargets = Field(default_factory=dict)
    max_new_tokens: Annotated[
        int, Field(ge=0, le=256, description="Tokens generated per patch; 0 reads the next token alone.")
    ] = 0
    lens: Annotated[FittedLens | None, Field(description="Fitted lens to read the states too.")] = None
    interventions: Annotated[
        Interventions,
        schemas.as_schema(schemas.OPERATION_LIST, "Edits of source and target."),
    ] = ()
    plot: Plot = False

    @model_validator(mode="after")
    def _has_one_kind_of_source(self) -> Self:
        if (self.source_prompts is None) == (self.source_vectors is None):
            came = "both" if self.source_prompts else "neither"
            raise ValueError(f"patchscope needs either source_prompts or source_vectors, and {came} came")
        if self.source_vectors and self.source_positions != ("last",):
            raise ValueError("source_positions are those of source_prompts: source_vectors have none")
        if self.source_prompts and self.factor != 1:
            raise ValueError("factor scales source_vectors: the states of source_prompts are put in as they are")
        return self
