"""Limits the number of values in a request before it is parsed, so that no client delays the others.

Python parses megabytes of text in no time, but takes seconds for as many bytes of small values, and nothing else runs
meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnterp_mcp.errors import LimitExceeded

MOST_VALUES = 400_000
"""Numbers and texts that a request holds, at most; a name, a list and an object count as eight of them."""

_NAME = 8
"""The cost of parsing a name, a list or an object, relative to a number in a list."""

_MOST_NAMES = 1000
"""Names of one object: of arguments, categories, groups."""

_DEEPEST = 64
_FEWER = "Send fewer values at once; a prompt file (run_prompts), a vector file or a run holds as many as you like."


def too_many_values(body: bytes) -> bool:
    """True if JSON has more than `MOST_VALUES` values, counted by commas, colons and brackets outside of strings."""
    if _weight(body) <= MOST_VALUES:
        return False
    if body.count(b'"') > 4 * MOST_VALUES:
        return True
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return _weight(b"".join(plain.split(b'"')[::2])) > MOST_VALUES


def _weight(text: bytes) -> int:
    return text.count(b",") + _NAME * sum(map(text.count, (b":", b"[", b"{")))


def require_few_values(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that would take long to check.

    Raises:
        LimitExceeded: They hold too many values, names or levels. A list that comes as JSON text counts as a list.
    """
    count = 0
    waiting: list[tuple[Any, int]] = [(arguments, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Mapping):
            if len(value) > _MOST_NAMES:
                raise LimitExceeded(f"an object of {len(value)} names, and a call takes {_MOST_NAMES} in one.", _FEWER)
            count += _NAME * len(value)
            parts = list(value.values())
        elif isinstance(value, list | tuple):
            parts = value
        else:
            if isinstance(value, str) and value[:1] in ("[", "{"):
                count += _weight(value.encode(errors="replace"))
                if count > MOST_VALUES:
                    raise _too_many()
            continue
        count += _NAME + len(parts)
        if count > MOST_VALUES:
            raise _too_many()
        if depth == _DEEPEST:
            raise LimitExceeded(f"arguments nested more than {_DEEPEST} levels deep.", "No argument needs that many.")
        waiting += [(part, depth + 1) for part in parts]


def _too_many() -> LimitExceeded:
    return LimitExceeded(
        f"the arguments hold more than {MOST_VALUES:,} values, and a call takes no more (a name or a list counts as "
        f"{_NAME}).",
        _FEWER,
    )
