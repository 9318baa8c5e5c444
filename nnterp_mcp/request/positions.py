"""Layers and positions as callers write them; the worker resolves them against a model (`model/text/positions.py`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_RANGE,
    LONGEST_STRING,
    MOST_INDICES,
    MOST_POSITIONS,
    Given,
    decoded,
    is_whole,
    require_at_most,
    shown,
    whole,
    without_nulls,
)

LayerSpec = Literal["all"] | str | int | tuple[int, ...]


def parse_indices(
    value: Any, name: str, most: int = MOST_INDICES, example: str = "4:20", words: tuple[str, ...] = ("all",)
) -> LayerSpec:
    """Indices of layers, heads and the like: one, a list, a range or a word.

    Args:
        value: The value that came.
        name: The name of the field, for the error.
        most: The most indices of a list.
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


_SLICE = re.compile(r"\s*(-?[0-9]{1,9})?\s*:\s*(-?[0-9]{1,9})?\s*(:\s*(-?(?!0+\s*$)[0-9]{1,9})?\s*)?")


_INTEGER = re.compile(r"\s{0,8}-?[0-9]{1,9}\s{0,8}", re.ASCII)
_POINT = re.compile(r"(?<=[0-9])\.0+(?=\s*(:|$))")


def _is_slice(value: str) -> bool:
    return len(value) <= LONGEST_RANGE and _SLICE.fullmatch(value) is not None


Layers = Annotated[
    LayerSpec,
    BeforeValidator(_as_layers),
    schemas.as_schema(schemas.INDICES, "A layer, a list, '4:20' (4 to 19) or 'all'."),
]
Positions = Annotated[
    tuple[PositionSpec, ...],
    BeforeValidator(_as_positions),
    schemas.as_schema(
        schemas.POSITIONS,
        "Tokens: an index, 'last', 'all', '2:5' (2 to 4), {\"text\": \"France\"}, "
        'in a chat {"turn": 0}, or a list of these.',
    ),
]


def goes_on(asked: Sequence[PositionSpec], last: bool = True) -> bool:
    """True if positions reach on to new tokens: `all`, `last`, and ranges without an end, a negative start or a step.

    Args:
        asked: The positions as the request gave them.
        last: `last` means the newest token, not the prompt's last one.
    """
    return any(spec == "all" or (spec == "last" and last) or _is_open(spec) for spec in asked)


def _is_open(spec: PositionSpec) -> bool:
    begin, *rest = spec.split(":") if isinstance(spec, str) else [""]
    return len(rest) == 1 and not rest[0].strip() and not begin.strip().startswith("-")
