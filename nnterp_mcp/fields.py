"""The types of the parameters that tools share: prompts, layers, positions, targets.

Each parses what an agent may send and says in one sentence what it takes. Nothing here knows a model: the worker
resolves layers and positions against one (`model/layers.py`, `model/positions.py`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)


def shown(value: Any, limit: int = 80) -> str:
    """A value as an error message shows it; of a large one only the beginning is looked at."""
    text = repr(_beginning(value, [limit]))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _beginning(value: Any, left: list[int]) -> Any:
    """A value cut after so many items, whose text is longer than they are many."""
    if isinstance(value, str | bytes):
        return value[: left[0] + 1]
    if type(value) is dict:
        return {name: _beginning(value[name], left) for name in _first(value, left)}
    if type(value) in (list, tuple):
        return type(value)([_beginning(item, left) for item in _first(value, left)])
    return value


def _first(items: Iterable[Any], left: list[int]) -> Iterator[Any]:
    for item in items:
        if left[0] < 0:
            return
        left[0] -= 1
        yield item


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


class Message(BaseModel):
    """One turn of a chat.

    Attributes:
        role: Whose turn.
        content: Its text.
        closed: Whether the turn is over, if it is the assistant's and the last: otherwise it is continued.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    content: Annotated[str, BeforeValidator(_joined)]
    closed: Annotated[bool, Field(exclude_if=operator.not_)] = False


class TokenId(BaseModel):
    """Exactly one token, by its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[int, Field(ge=0)]


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
    """What is wrong with a message."""
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
    wrong = (
        f"prompts must be a string, a list of chat messages {{role, content}}, or a list of these, not {shown(value)}"
    )
    one = isinstance(value, str) or (isinstance(value, list) and value and all(_is_message(item) for item in value))
    items = [value] if one else value
    if not isinstance(items, list | tuple):
        raise ValueError(wrong)
    if not items:
        raise ValueError("prompts is empty: give at least one prompt")
    try:
        prompts = tuple(_PROMPT_ADAPTER.validate_python(item) for item in items)
    except ValidationError as error:
        raise ValueError(_reason(error) or wrong) from None
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: give at least one token of text")
    return prompts


def _as_groups(value: Any) -> dict[str, tuple[Prompt, ...]]:
    """Prompts under the names of their groups; under `prompts` where they come in one list."""
    if not isinstance(value, Mapping) or _is_message(value):
        return {"prompts": _as_prompts(value)}
    if not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"groups must map names to prompts, not {shown(value)}")
    groups: dict[str, tuple[Prompt, ...]] = {}
    for name, prompts in value.items():
        try:
            groups[name] = _as_prompts(prompts)
        except ValueError as error:
            raise ValueError(f"group {shown(name)}: {error}") from None
    return groups


def _reason(error: ValidationError) -> str | None:
    """What one of our own validators says of a value; None where it was refused by its type alone."""
    detail = error.errors()[0]
    return detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None


def _is_message(value: Any) -> bool:
    return isinstance(value, Message) or (isinstance(value, dict) and "role" in value)


LayerSpec = Literal["all"] | str | int | tuple[int, ...]


def _as_layers(value: Any) -> LayerSpec:
    if isinstance(value, str) and (value == "all" or _is_slice(value)):
        return value
    if _is_int(value):
        return value
    if isinstance(value, list | tuple) and value and all(_is_int(item) for item in value):
        return tuple(value)
    raise ValueError(
        f"layers must be an integer, a list of integers, a range such as '4:20' or 'all', not {shown(value)}"
    )


class TextPosition(BaseModel):
    """Every token of a piece of the prompt's text; `occurrence` counts from 0, or from -1 backwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1)]
    occurrence: int = 0


class TurnPosition(BaseModel):
    """Every token of one message of a chat, or of a piece of it; without `turn`, of every message of that role.

    Attributes:
        turn: Which message, counted from 0, or from -1 backwards; with `role`, among the messages of that role.
        role: Whose message.
        part: `content`, or what the chat template writes `after` it: up to the next content, or to the end.
        text: A piece to look for in that part only.
        occurrence: Which one, counted from 0, or from -1 backwards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: Annotated[int, Field(strict=True)] | None = None
    role: Annotated[str, Field(min_length=1)] | None = None
    part: Literal["content", "after"] = "content"
    text: Annotated[str, Field(min_length=1)] | None = None
    occurrence: int = 0


PositionSpec = int | str | TextPosition | TurnPosition


def _as_positions(value: Any) -> tuple[PositionSpec, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("positions is empty: give at least one position")
    return tuple(_as_position(item) for item in items)


def _as_position(value: Any) -> PositionSpec:
    if _is_int(value) or isinstance(value, TextPosition | TurnPosition):
        return value
    if isinstance(value, str) and (value in ("last", "all") or _is_slice(value)):
        return value
    if isinstance(value, dict):
        try:
            return (TurnPosition if {"turn", "role"} & value.keys() else TextPosition).model_validate(value)
        except ValidationError:
            pass
    raise ValueError(
        "a position must be an integer, 'last', 'all', a range such as '2:5', {\"text\": …, \"occurrence\": …} or "
        'a chat\'s {"turn": …, "role": …, "part": "content" or "after", "text": …, "occurrence": …}, '
        f"not {shown(value)}"
    )


Target = Annotated[str, Field(min_length=1)] | TokenId
"""A string, which stands for its first token, or one token by its id."""

_TARGET_LIST: TypeAdapter[tuple[Target, ...]] = TypeAdapter(Annotated[tuple[Target, ...], Field(min_length=1)])


def _as_targets(value: Any) -> dict[str, tuple[Target, ...]]:
    wrong = f"targets must map a category to one string or a list of strings, not {shown(value)}"
    if not isinstance(value, Mapping):
        raise ValueError(wrong)
    targets: dict[str, tuple[Target, ...]] = {}
    for category, given in value.items():
        items = given if isinstance(given, list | tuple) else [given]
        if not isinstance(category, str) or not isinstance(given, str | Mapping | TokenId | list | tuple):
            raise ValueError(wrong)
        try:
            targets[category] = _TARGET_LIST.validate_python(items)
        except ValidationError:
            raise ValueError(
                f'target category {shown(category)} needs at least one non-empty string, or {{"id": N}} for exactly '
                f"one token, not {shown(given)}"
            ) from None
    return targets


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_SLICE = re.compile(r"\s*(-?[0-9]{1,9})?\s*:\s*(-?[0-9]{1,9})?\s*(:\s*(-?(?!0+\s*$)[0-9]{1,9})?\s*)?")


def _is_slice(value: str) -> bool:
    return _SLICE.fullmatch(value) is not None


ModelHandle = Annotated[str | None, Field(description="Handle, if several.")]
RunId = Annotated[str, Field(description="The run_id of an answer.")]
Prompts = Annotated[
    tuple[Prompt, ...],
    BeforeValidator(_as_prompts),
    WithJsonSchema(
        {
            "type": ["string", "array"],
            "description": "Text, chat [{role, content}], or a list of them.",
        }
    ),
]
PromptGroups = Annotated[
    dict[str, tuple[Prompt, ...]],
    BeforeValidator(_as_groups),
    WithJsonSchema(
        {
            "type": ["object", "array", "string"],
            "description": 'Groups {"positive": [...], "negative": [...]}, or one list.',
        }
    ),
]
Layers = Annotated[
    LayerSpec,
    BeforeValidator(_as_layers),
    WithJsonSchema(
        {
            "type": ["integer", "string", "array"],
            "description": "Layer, list, '4:20' (4 to 19) or 'all'; negative: from end.",
        }
    ),
]
Positions = Annotated[
    tuple[PositionSpec, ...],
    BeforeValidator(_as_positions),
    WithJsonSchema(
        {
            "type": ["integer", "string", "object", "array"],
            "description": "Token (negative: from end), 'last', 'all', '2:5', "
            '{"text": "France"}, chat {"turn": 0} or list.',
        }
    ),
]
Targets = Annotated[
    dict[str, tuple[Target, ...]],
    BeforeValidator(_as_targets),
    WithJsonSchema(
        {
            "type": "object",
            "description": 'Strings to follow by category, {"capital": "Paris", "traps": ["London", "Rome"]}: their '
            'first tokens, with and without leading space. {"id": 8083}: that token alone.',
        }
    ),
]
_TARGETS: TypeAdapter[dict[str, tuple[Target, ...]]] = TypeAdapter(Targets)


def _as_target_sets(value: Any) -> tuple[dict[str, tuple[Target, ...]], ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("targets is empty: leave it out, or give one mapping for all prompts or one for each")
    found = tuple(_TARGETS.validate_python(item) for item in items)
    if len({len(targets) for targets in found}) > 1:
        raise ValueError("targets must have as many categories for each prompt")
    return found


TargetSets = Annotated[
    tuple[dict[str, tuple[Target, ...]], ...],
    BeforeValidator(_as_target_sets),
    WithJsonSchema(
        {
            "type": ["object", "array"],
            "description": '{"answer": "Paris", "wrong": "Rome"} ({"id": 8083}: that token), or one per prompt.',
        }
    ),
]
"""Targets for all prompts, or one mapping for each."""
Plot = Annotated[bool, Field(description="Add a picture.")]
TopK = Annotated[int, Field(ge=1, le=20, description="Top tokens shown.")]
