"""Target strings and tokens, by category, as callers write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import (
    LONGEST_STRING,
    MOST_CATEGORIES,
    MOST_PROMPTS,
    MOST_STRINGS,
    MOST_TARGETS,
    MOST_WORDS,
    Given,
    decoded,
    require_at_most,
    shown,
    whole,
)


class TokenId(Given):
    """Exactly one token, by its id."""

    id: Annotated[int, BeforeValidator(whole), Field(ge=0, strict=True)]


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


Targets = Annotated[
    dict[str, tuple[Target, ...]],
    BeforeValidator(_as_targets),
    schemas.as_schema(
        schemas.TARGET_MAP,
        'Strings to follow by category, {"capital": "Paris", "traps": ["London", "Rome"]}, each by its first token '
        '(with and without a leading space); {"id": 8083} is that token.',
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
    schemas.as_schema(schemas.TARGET_SETS, '{"answer": "Paris", "wrong": "Rome"}, or one per prompt.'),
]
"""Targets for all prompts, or one mapping for each."""
