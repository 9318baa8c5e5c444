"""The types of the parameters that tools share: prompts, layers, positions, targets.

Each parses what an agent may send and says in one sentence what it takes. Nothing here knows a model: the worker
resolves layers and positions against one (`model/layers.py`, `model/positions.py`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_RANGE,
    LONGEST_STRING,
    LONGEST_TEXT,
    MOST_CATEGORIES,
    MOST_GROUPS,
    MOST_INDICES,
    MOST_POSITIONS,
    MOST_PROMPTS,
    MOST_STRINGS,
    MOST_TARGETS,
    MOST_TURNS,
    MOST_WORDS,
    Given,
    decoded,
    is_whole,
    require_at_most,
    whole,
    without_nulls,
)


def shown(value: Any, limit: int = 80) -> str:
    """A value as an error message shows it; of a large one only the beginning is looked at."""
    text = repr(_beginning(value, [limit]))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _beginning(value: Any, left: list[int]) -> Any:
    """A value cut after so many parts, whose text is longer than they are many."""
    left[0] -= 1
    if isinstance(value, str | bytes):
        return value[: max(left[0], 0) + 2]
    if type(value) is dict:
        some = takewhile(lambda _: left[0] > 0, value.items())
        return {_beginning(name, left): _beginning(part, left) for name, part in some}
    if type(value) in (list, tuple):
        return type(value)(_beginning(part, left) for part in takewhile(lambda _: left[0] > 0, value))
    return value


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
        closed: Whether the turn is over, if it is the assistant's and the last: otherwise it is continued.
    """

    role: Annotated[str, Field(max_length=LONGEST_NAME)]
    content: Annotated[str, BeforeValidator(_joined), Field(max_length=LONGEST_TEXT)]
    closed: Annotated[bool, Field(exclude_if=operator.not_)] = False


class TokenId(Given):
    """Exactly one token, by its id."""

    id: Annotated[int, BeforeValidator(whole), Field(ge=0, strict=True)]


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
    value = read_text(value, holds_prompts)
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
        value: What came.
        holds: Whether a list or an object is of the kind that is taken.
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
    """Whether a list from JSON is one of prompts, or a chat; a lone message is refused, not taken for a text."""
    if isinstance(found, Mapping):
        return _is_message(found)
    return all(isinstance(item, str) or _is_message(item) or _is_chat(item) for item in found)


def _holds_groups(found: Any) -> bool:
    if isinstance(found, Mapping):
        return bool(found) and all(isinstance(prompts, str | list) for prompts in found.values())
    return holds_prompts(found)


def _as_groups(value: Any) -> dict[str, tuple[Prompt, ...]]:
    """Prompts under the names of their groups; under `prompts` where they come in one list."""
    value = read_text(value, _holds_groups)
    if not isinstance(value, Mapping) or _is_message(value):
        return {"prompts": _as_prompts(value)}
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
    """What one of our own validators says of a value; None where it was refused by its type alone."""
    detail = error.errors()[0]
    return detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None


def _is_message(value: Any) -> bool:
    return isinstance(value, Message) or (isinstance(value, Mapping) and "role" in value)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_message(item) for item in value)


LayerSpec = Literal["all"] | str | int | tuple[int, ...]


def parse_indices(
    value: Any, name: str, most: int = MOST_INDICES, example: str = "4:20", words: tuple[str, ...] = ("all",)
) -> LayerSpec:
    """Indices of layers, heads and the like: one, a list, a range or a word.

    Args:
        value: What came.
        name: What the indices are of, for the error.
        most: How many a list may have.
        example: A range.
        words: The words that are taken.

    Raises:
        ValueError: It is none of these.
    """
    given = _index(value)
    if is_whole(given) or (isinstance(given, str) and (given in words or _is_slice(given))):
        return given
    if isinstance(given, list | tuple) and given:
        require_at_most(most, given, name)
        numbers = tuple(whole(item) for item in given)
        if all(is_whole(item) for item in numbers):
            return numbers
    *first, last = map(repr, words)
    others = [*first, "an integer", "a list of integers", f"a range such as '{example}'"]
    raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {shown(value)}")


def _index(value: Any) -> Any:
    """An index or a list of them, which may come as text."""
    given = _range(value)
    if isinstance(given, str) and _INTEGER.fullmatch(given):
        return int(given)
    return whole(decoded(given))


def _range(value: Any) -> Any:
    """A range with whole numbers, though it came with 3.0 for 3; anything else as it is."""
    return _POINT.sub("", value) if isinstance(value, str) and len(value) <= LONGEST_RANGE else value


def _as_layers(value: Any) -> LayerSpec:
    return parse_indices(value, "layers")


class TextPosition(Given):
    """Every token of a piece of the prompt's text; `occurrence` counts from 0, or from -1 backwards."""

    text: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]
    occurrence: int = 0


class TurnPosition(Given):
    """Every token of one message of a chat, or of a piece of it; without `turn`, of every message of that role.

    Attributes:
        turn: Which message, counted from 0, or from -1 backwards; with `role`, among the messages of that role.
        role: Whose message.
        part: `content`, or what the chat template writes `after` it: up to the next content, or to the end.
        text: A piece to look for in that part only.
        occurrence: Which one, counted from 0, or from -1 backwards.
    """

    turn: Annotated[int, BeforeValidator(whole), Field(strict=True)] | None = None
    role: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)] | None = None
    part: Literal["content", "after"] = "content"
    text: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)] | None = None
    occurrence: int = 0


PositionSpec = int | str | TextPosition | TurnPosition


def _as_positions(value: Any) -> tuple[PositionSpec, ...]:
    given = _index(value)
    items = given if isinstance(given, list | tuple) else [given]
    if not items:
        raise ValueError("positions is empty: give at least one position")
    require_at_most(MOST_POSITIONS, items, "positions", "positions")
    return tuple(_as_position(item) for item in items)


def _as_position(value: Any) -> PositionSpec:
    given = without_nulls(whole(_range(value)))
    if is_whole(given) or isinstance(given, TextPosition | TurnPosition):
        return given
    if isinstance(given, str) and (given in ("last", "all") or _is_slice(given)):
        return given
    if isinstance(given, Mapping):
        try:
            return (TurnPosition if {"turn", "role"} & given.keys() else TextPosition).model_validate(given)
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
    value = decoded(value)
    wrong = f"targets must map a category to one string or a list of strings, not {shown(value)}"
    if not isinstance(value, Mapping):
        raise ValueError(wrong)
    _require_few_strings(value)
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


def _require_few_strings(targets: Mapping[Any, Any]) -> None:
    """Refuses more targets, or longer ones, than one mapping may have."""
    require_at_most(MOST_CATEGORIES, targets, "targets", "categories")
    count = 0
    for category, given in targets.items():
        name = f"target category {shown(category)}"
        strings = given if isinstance(given, list | tuple) else [given]
        require_at_most(MOST_WORDS, strings, name, "strings")
        for text in [category, *strings]:
            require_at_most(LONGEST_STRING, text if isinstance(text, str) else "", f"a string of {name}", "characters")
        count += len(strings)
    require_at_most(MOST_STRINGS, range(count), "targets", "strings in all")


def require_few_targets(mappings: Iterable[Any]) -> None:
    """Refuses more strings in all mappings together than a call follows.

    Raises:
        ValueError: There are more; with how many came.
    """
    words = (words for one in mappings if isinstance(one, Mapping) for words in one.values())
    count = sum(len(some) if isinstance(some, list | tuple) else 1 for some in words)
    require_at_most(MOST_TARGETS, range(count), "targets", "strings in all")


_SLICE = re.compile(r"\s*(-?[0-9]{1,9})?\s*:\s*(-?[0-9]{1,9})?\s*(:\s*(-?(?!0+\s*$)[0-9]{1,9})?\s*)?")


_INTEGER = re.compile(r"\s{0,8}-?[0-9]{1,9}\s{0,8}", re.ASCII)
_POINT = re.compile(r"(?<=[0-9])\.0+(?=\s*(:|$))")


def _is_slice(value: str) -> bool:
    return len(value) <= LONGEST_RANGE and _SLICE.fullmatch(value) is not None


ModelHandle = Annotated[str | None, Field(max_length=LONGEST_STRING, description="Handle, if several.")]
RunId = Annotated[str, Field(max_length=LONGEST_NAME, description="The run_id of an answer.")]
Prompts = Annotated[
    tuple[Prompt, ...],
    BeforeValidator(_as_prompts),
    schemas.as_schema(schemas.PROMPTS, "Text, chat [{role, content}], or a list of them."),
]
PromptGroups = Annotated[
    dict[str, tuple[Prompt, ...]],
    BeforeValidator(_as_groups),
    schemas.as_schema(schemas.GROUPS, 'Groups {"positive": [...], "negative": [...]}, or one list.'),
]
Layers = Annotated[
    LayerSpec,
    BeforeValidator(_as_layers),
    schemas.as_schema(schemas.INDICES, "Layer, list, '4:20' (4 to 19) or 'all'; negative: from end."),
]
Positions = Annotated[
    tuple[PositionSpec, ...],
    BeforeValidator(_as_positions),
    schemas.as_schema(
        schemas.POSITIONS,
        "Token (negative: from end), 'last', 'all', '2:5', {\"text\": \"France\"}, chat {\"turn\": 0} or list.",
    ),
]
Targets = Annotated[
    dict[str, tuple[Target, ...]],
    BeforeValidator(_as_targets),
    schemas.as_schema(
        schemas.TARGETS,
        'Strings to follow by category, {"capital": "Paris", "traps": ["London", "Rome"]}: their first tokens, with '
        'and without leading space. {"id": 8083}: that token alone.',
    ),
]
_TARGETS: TypeAdapter[dict[str, tuple[Target, ...]]] = TypeAdapter(Targets)


def _as_target_sets(value: Any) -> tuple[dict[str, tuple[Target, ...]], ...]:
    value = decoded(value)
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("targets is empty: leave it out, or give one mapping for all prompts or one for each")
    require_at_most(MOST_PROMPTS, items, "targets", "mappings")
    require_few_targets(items)
    found = tuple(_TARGETS.validate_python(item) for item in items)
    if len({len(targets) for targets in found}) > 1:
        raise ValueError("targets must have as many categories for each prompt")
    return found


TargetSets = Annotated[
    tuple[dict[str, tuple[Target, ...]], ...],
    BeforeValidator(_as_target_sets),
    schemas.as_schema(
        schemas.TARGET_SETS, '{"answer": "Paris", "wrong": "Rome"} ({"id": 8083}: that token), or one per prompt.'
    ),
]
"""Targets for all prompts, or one mapping for each."""
Plot = Annotated[bool, Field(description="Add a picture.")]
TopK = Annotated[int, Field(ge=1, le=20, description="Top tokens shown.")]
