"""Prompts as callers write them: texts, chats, and groups of these."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_GROUPS,
    MOST_PROMPTS,
    MOST_TURNS,
    Given,
    decoded,
    require_at_most,
    shown,
)
from nnterp_mcp.request.named_sets import UNGROUPED, groups_of, prompts_of


def _joined(value: Any) -> Any:
    """The content of a message as text: the parts that some clients send are put together."""
    if not isinstance(value, list | tuple):
        return value
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            came = f"of the type {shown(kind)}" if isinstance(kind, str) and kind != "text" else shown(part)
            raise ValueError(
                f'part {index} of the content is {came}, and only text is read: {{"type": "text", "text": …}}'
            )
    return "".join(part["text"] for part in value)


class Message(Given):
    """One turn of a chat.

    Attributes:
        role: Whose turn.
        content: Its text.
        closed: True if the turn is over, if it is the assistant's and the last: otherwise it is continued.
    """

    role: Annotated[str, Field(max_length=LONGEST_NAME)]
    content: Annotated[str, BeforeValidator(_joined), Field(max_length=LONGEST_TEXT)]
    closed: Annotated[bool, Field(exclude_if=operator.not_)] = False


def require_messages(value: Any) -> Any:
    """Refuses the first message of a chat that is none, by its reason; leaves everything else as it came."""
    if isinstance(value, list) and all(map(_is_message, value)):
        for index, message in enumerate(value):
            try:
                Message.model_validate(message)
            except ValidationError as error:
                raise ValueError(f"message {index} of the chat {_fault(error)}") from None
    return value


def _fault(error: ValidationError) -> str:
    detail = error.errors()[0]
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"has no {field}: a message is {{role, content}}"
    if detail["type"] == "extra_forbidden":
        return f"has {shown(field)}: a message is {{role, content}}, the last one with closed if need be"
    reason = detail["msg"].removeprefix("Value error, ")
    return f"has no {field} that can be read: {reason[:1].lower()}{reason[1:]}"


Prompt = Annotated[str | list[Message], BeforeValidator(require_messages)]
"""Plain text, or the turns of a chat, which the model's chat template turns into text."""

_PROMPT_ADAPTER: TypeAdapter[Prompt] = TypeAdapter(Prompt)


def _as_prompts(value: Any) -> tuple[Prompt, ...]:
    value = read_text(prompts_of(value), holds_prompts)
    wrong = (
        f"prompts must be a string, a list of chat messages {{role, content}}, or a list of these, not {shown(value)}"
    )
    items = [value] if isinstance(value, str) or _is_chat(value) else value
    if not isinstance(items, list | tuple):
        raise ValueError(wrong)
    if not items:
        raise ValueError("prompts is empty: give at least one prompt")
    require_at_most(MOST_PROMPTS, items, "prompts", "prompts")
    for index, item in enumerate(items):
        require_short_prompt(item, index)
    try:
        return tuple(_PROMPT_ADAPTER.validate_python(item) for item in items)
    except ValidationError as error:
        raise ValueError(_reason(error) or wrong) from None


def require_short_prompt(prompt: Any, index: int) -> None:
    """Refuses a prompt that is empty or longer than any that runs.

    Raises:
        ValueError: It is; with its place among the prompts.
    """
    if isinstance(prompt, str | list | tuple) and not prompt:
        raise ValueError(f"prompt {index} is empty: give at least one token of text")
    if isinstance(prompt, str):
        require_at_most(LONGEST_TEXT, prompt, f"prompt {index}", "characters")
    elif isinstance(prompt, list | tuple):
        require_at_most(MOST_TURNS, prompt, f"the chat of prompt {index}", "messages")
        for message in prompt:
            content = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(content, str):
                require_at_most(LONGEST_TEXT, content, f"a message of prompt {index}", "characters")


def read_text(value: Any, holds: Callable[[Any], bool]) -> Any:
    """The list or object that a text holds as JSON, where a prompt may be meant by it as well.

    A text that is no JSON, or JSON of another kind, is a prompt as it stands; in a list every text stands for itself.

    Args:
        value: The value that came.
        holds: True if a list or an object is of the kind that is taken.
    """
    found = decoded(value)
    return found if found is not value and holds(found) else value


def as_prompt(value: Any) -> Prompt:
    """One text or one chat, which may come as JSON text.

    Raises:
        ValueError: It is neither.
    """
    value = value[0] if isinstance(value, list | tuple) and len(value) == 1 and not _is_chat(value) else value
    (prompt,) = _as_prompts([read_text(value, _is_chat)])
    return prompt


def holds_prompts(found: Any) -> bool:
    """True if a list from JSON is one of prompts, or a chat; a lone message is refused, not taken for a text."""
    if isinstance(found, Mapping):
        return _is_message(found)
    return all(isinstance(item, str) or _is_message(item) or _is_chat(item) for item in found)


def _holds_groups(found: Any) -> bool:
    if isinstance(found, Mapping):
        return bool(found) and all(isinstance(prompts, str | list) for prompts in found.values())
    return holds_prompts(found)


def _as_groups(value: Any) -> dict[str, tuple[Prompt, ...]]:
    """Prompts under the names of their groups; those of one list are under `prompts`."""
    value = read_text(groups_of(value), _holds_groups)
    if not isinstance(value, Mapping) or _is_message(value):
        return {UNGROUPED: _as_prompts(value)}
    if not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"groups must map names to prompts, not {shown(value)}")
    require_at_most(MOST_GROUPS, value, "prompts", "groups")
    groups: dict[str, tuple[Prompt, ...]] = {}
    for name, prompts in value.items():
        require_at_most(LONGEST_NAME, name, "a group's name", "characters")
        try:
            groups[name] = _as_prompts(prompts)
        except ValueError as error:
            raise ValueError(f"group {shown(name)}: {error}") from None
    return groups


def _reason(error: ValidationError) -> str | None:
    detail = error.errors()[0]
    return detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None


def _is_message(value: Any) -> bool:
    return isinstance(value, Message) or (isinstance(value, Mapping) and "role" in value)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_message(item) for item in value)


Prompts = Annotated[
    tuple[Prompt, ...],
    BeforeValidator(_as_prompts),
    schemas.as_schema(
        schemas.PROMPTS,
        'A text, chat [{role, content}], list of these or {"set": NAME}.',
    ),
]
PromptGroups = Annotated[
    dict[str, tuple[Prompt, ...]],
    BeforeValidator(_as_groups),
    schemas.as_schema(
        schemas.GROUPS, 'Prompts by group, {"positive": [...], "negative": [...]}, or one list, or {"set": NAME}.'
    ),
]
