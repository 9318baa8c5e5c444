"""Normalizes arguments (null for absent, 3.0 for 3, lists and objects as JSON text) and sets their size limits.

Clients differ. Some send null for every optional parameter, some know no integers, some send lists and objects as text.
The limits stand in the schemas and in the code alike: generous for any experiment, and small enough that nothing which
looks at every item, or at every pair of them, takes long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from itertools import takewhile
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import from_json

MOST_PROMPTS = 10_000
"""Prompts of a call; how many run, `max_prompts` says."""

MOST_GROUPS = 64
"""Groups of prompts; some figures compare each with each."""

MOST_TURNS = 1_000
"""Messages of a chat."""

MOST_INDICES = 4_096
"""Layers, heads or steps in a list."""

MOST_POSITIONS = 1_024
"""Positions in a list."""

MOST_NUMBERS = 65_536
"""Numbers of a vector, or components of a state that are chosen."""

MOST_CELLS = 250_000
"""Numbers of a matrix."""

MOST_CATEGORIES = 256
"""Categories of targets."""

MOST_WORDS = 1_024
"""Strings of a category of targets."""

MOST_STRINGS = 4_096
"""Strings of all categories of one mapping."""

MOST_TARGETS = 65_536
"""Strings of the targets of all prompts of a call."""

MOST_OPERATIONS = 256
"""Interventions in a list."""

LONGEST_TEXT = 1_000_000
"""Characters of a prompt, or of a message; how many tokens run, `max_prompt_tokens` says."""

LONGEST_STRING = 1_024
"""Characters of a target, of a piece of a prompt, or of a path."""

LONGEST_NAME = 256
"""Characters of a name, a handle or an id."""

LONGEST_RANGE = 64
"""Characters of a range."""

LARGEST_SEED = 2**53
"""The largest whole number that every client can say."""


class Given(BaseModel):
    """Base of what callers write: frozen, unknown names refused, null for what is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, given: Any) -> Any:
        return without_nulls(decoded(given))


def without_nulls(given: Any) -> Any:
    """An object without the fields that are null; anything else as it is."""
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if value is not None}


def decoded(given: Any, begins: str = "[{") -> Any:
    """The list or the object that a text holds as JSON; anything else as it is.

    Args:
        given: The value that came.
        begins: The characters with which JSON may begin, digits among them where a number may come as text.
    """
    if not isinstance(given, str) or given.lstrip()[:1] not in (*begins,):
        return given
    try:
        return from_json(given)
    except ValueError:
        return given


def whole(given: Any) -> Any:
    """The integer that a number such as 3.0 stands for; anything else as it is."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


def is_whole(given: Any) -> bool:
    """True if the value is an integer; booleans do not count."""
    return isinstance(given, int) and not isinstance(given, bool)


def require_at_most(most: int, given: Sized, name: str, things: str = "items") -> None:
    """Refuses what holds too much, before anything looks at all of it.

    Raises:
        ValueError: There are more; with how many came.
    """
    if len(given) > most:
        raise ValueError(f"{name} takes at most {most:,} {things}, and {len(given):,} came")


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
