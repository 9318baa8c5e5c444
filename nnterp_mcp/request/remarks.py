"""Remarks on how a call's input was interpreted, for its caller. Imports nothing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_MADE: ContextVar[dict[str, None] | None] = ContextVar("remarks", default=None)


@contextmanager
def collect_remarks() -> Generator[dict[str, None]]:
    """Collects the remarks made in its body, each once; without it they are dropped."""
    made: dict[str, None] = {}
    token = _MADE.set(made)
    try:
        yield made
    finally:
        _MADE.reset(token)


def remark(text: str) -> None:
    """Adds a remark of one sentence."""
    made = _MADE.get()
    if made is not None:
        made[text] = None
