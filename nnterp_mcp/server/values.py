"""How much a request may hold, looked at before anything parses it: what one client sends must not hold up the others.

Python reads a text of megabytes in no time, but takes seconds for as many bytes of small values, and nothing else runs
meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnterp_mcp.errors import LimitExceeded

MOST_VALUES = 400_000
"""Numbers and texts that a request holds, at most; a name, a list and an object count as eight of them."""

_NAME = 8
"""What a name, a list or an object costs to read beside a number in a list, about."""

_MOST_NAMES = 1000
"""Names of one object: of arguments, categories, groups."""

_DEEPEST = 64
_FEWER = "Send fewer values at once; a prompt file (run_prompts), a vector file or a run holds as many as you like."


def too_many_values(body: bytes) -> bool:
    """Whether JSON holds more than `MOST_VALUES` values, told by its commas, colons and brackets outside of texts."""
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
