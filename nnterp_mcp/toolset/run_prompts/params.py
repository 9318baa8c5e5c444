"""Arguments of `run_prompts`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_STRING, MOST_PROMPTS, Given, require_at_most, shown, without_nulls
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers
from nnterp_mcp.request.prompts import Prompt, holds_prompts, read_text, require_short_prompt
from nnterp_mcp.request.targets import Targets, require_few_targets


class PromptItem(Given):
    """A prompt with targets of its own."""

    prompt: Prompt
    targets: Targets = Field(default_factory=dict)


class PromptFile(Given):
    """A JSONL or CSV file of prompts in a folder that the server allows."""

    path: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]


PromptSet = PromptFile | tuple[PromptItem, ...]


def as_prompt_set(value: Any) -> PromptSet:
    """Parses a prompt set: strings, objects with their own targets, or a file.

    Raises:
        ValueError: It is none of these, or empty.
    """
    value = without_nulls(value)
    if isinstance(value, dict) and "path" in value:
        return PromptFile.model_validate(value)
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("prompts is empty: give at least one prompt")
    return tuple(_as_item(index, item) for index, item in enumerate(items))


def _as_given(value: Any) -> PromptSet:
    value = read_text(value, _holds_prompt_set)
    if isinstance(value, list | tuple):
        require_at_most(MOST_PROMPTS, value, "prompts", "prompts")
        require_few_targets(item.get("targets") for item in value if isinstance(item, dict))
    return as_prompt_set(value)


def _holds_prompt_set(found: Any) -> bool:
    if isinstance(found, dict):
        return "path" in found or "prompt" in found or holds_prompts(found)
    return holds_prompts([item["prompt"] if isinstance(item, dict) and "prompt" in item else item for item in found])


def _as_item(index: int, value: Any) -> PromptItem:
    given = value if isinstance(value, PromptItem | dict) else {"prompt": value}
    require_short_prompt(given.get("prompt") if isinstance(given, dict) else given.prompt, index)
    try:
        item = PromptItem.model_validate(given)
    except ValidationError as error:
        reason = error.errors()[0]
        raise ValueError(
            f"prompt {index} must be text, chat messages or {{prompt, targets}}, not {shown(value)} "
            f"({reason['msg'].removeprefix('Value error, ')})"
        ) from None
    return item


class RunPromptsParams(ModelParams):
    """Which prompts to run, and what to follow in their answers."""

    prompts: Annotated[
        PromptSet,
        BeforeValidator(_as_given),
        schemas.as_schema(
            schemas.PROMPTS_OR_OBJECT,
            'Strings that share `targets`, objects {"prompt", "targets"} with their own, or {"path": FILE}: JSONL of '
            "these, or CSV with a prompt column and a column per category.",
        ),
    ]
    targets: Targets = Field(default_factory=dict)
    readout: Annotated[
        Literal["next_token", "logit_lens", "patchscope"],
        Field(description="The model's answer, or what each layer would say by lens or patchscope."),
    ] = "next_token"
    layers: Layers = "all"
    batch_tokens: Annotated[int | None, Field(ge=1, le=1 << 20, description="Padded tokens in a batch.")] = None
    interventions: Interventions = ()
    plot: Plot = False
