"""What a call's caller is to be told of what was made of the input, wherever that happens. Imports nothing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_MADE: ContextVar[dict[str, None] | None] = ContextVar("remarks", default=None)


@contextmanager
def collect_remarks() -> Generator[dict[str, None]]:
    """While in force, remarks are kept, each once; outside of it nobody hears them."""
    made: dict[str, None] = {}
    token = _MADE.set(made)
    try:
        yield made
    finally:
        _MADE.reset(token)


def remark(text: str) -> None:
    """Says one sentence."""
    made = _MADE.get()
    if made is not None:
        made[text] = None
