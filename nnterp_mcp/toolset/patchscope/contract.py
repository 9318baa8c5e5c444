"""`patchscope`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema

from nnterp_mcp.contract import ModelParams, ToolSpec
from nnterp_mcp.fields import Layers, LayerSpec, Positions, PositionSpec, Prompt, Prompts, Targets, TopK, shown
from nnterp_mcp.operations import Interventions
from nnterp_mcp.toolset.patchscope.digest import digest, render
from nnterp_mcp.toolset.patchscope.result import PatchscopeAnswer, PatchscopeResult

_POSITIONS: TypeAdapter[tuple[PositionSpec, ...]] = TypeAdapter(Positions)
_LAYERS: TypeAdapter[LayerSpec] = TypeAdapter(Layers)
_PROMPTS: TypeAdapter[tuple[Prompt, ...]] = TypeAdapter(Prompts)


def _as_target(value: Any) -> Prompt:
    try:
        (prompt,) = _PROMPTS.validate_python(value)
    except (ValidationError, ValueError):
        raise ValueError(
            "target_prompt must be one text, the messages {role, content} of one chat, 'repeat' or 'repeat_chat', "
            f"not {shown(value)}"
        ) from None
    return prompt


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
    if value == "same":
        return value
    try:
        return _LAYERS.validate_python(value)
    except ValidationError:
        raise ValueError(
            "target_layers must be 'same', an integer, a list of integers, a range such as '4:20' or 'all', "
            f"not {shown(value)}"
        ) from None


class PatchscopeParams(ModelParams):
    """Whose states are put where."""

    source_prompts: Prompts
    source_positions: Positions = ("last",)
    source_layers: Layers = "all"
    target_prompt: Annotated[
        Prompt,
        BeforeValidator(_as_target),
        WithJsonSchema(
            {
                "type": ["string", "array"],
                "description": "Text or chat; 'repeat' (the paper's \"hello hello\\n?\" prompt) or 'repeat_chat'.",
            }
        ),
    ] = "repeat"
    target_position: Annotated[
        PositionSpec,
        BeforeValidator(_as_target_position),
        WithJsonSchema(
            {
                "type": ["integer", "string", "object"],
                "description": "Token replaced, as one source position.",
            }
        ),
    ] = "last"
    target_layers: Annotated[
        LayerSpec,
        BeforeValidator(_as_target_layers),
        WithJsonSchema(
            {
                "type": ["integer", "string", "array"],
                "description": "'same'; one layer; a list paired with source_layers; a range or 'all' for a grid.",
            }
        ),
    ] = "same"
    top_k: TopK = 3
    targets: Targets = Field(default_factory=dict)
    max_new_tokens: Annotated[int, Field(ge=0, le=256, description="Tokens to generate; 0: next token only.")] = 0
    interventions: Interventions = ()


SPEC = ToolSpec(
    name="patchscope",
    title="Patchscope",
    description=(
        "What a hidden state means to the model: puts it into a target prompt, layer by layer, and reads what the "
        "model says there, beside the unpatched target. The default target makes it repeat a token; 'Syria: a country"
        '\\nx\' with target_position {"text": "x"} and max_new_tokens makes it describe one. Silence does not prove '
        "that the information is absent."
    ),
    params=PatchscopeParams,
    result=PatchscopeResult,
    answer=PatchscopeAnswer,
    digest=digest,
    render=render,
)
