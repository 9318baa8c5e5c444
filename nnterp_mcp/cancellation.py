"""Cancellation of calls by a context variable, so that loops deep in the library need no parameter for it.

Forward passes check at every layer. Other loops over a caller's input (prompts, positions, targets, groups, folds)
check once per item, since a process that does not stop in time is killed, and its model with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar


def _go_on() -> None:
    """Nobody asks for the end."""


_check: ContextVar[Callable[[], None]] = ContextVar("check", default=_go_on)


@contextmanager
def cancellable(check: Callable[[], None]) -> Generator[None]:
    """Within it, `check_cancelled` asks `check`, which raises what the work is to end with."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def check_cancelled() -> None:
    """Ends the work in hand here, if someone asked for that.

    Raises:
        NnterpError: The call was cancelled, or ran past its time.
    """
    _check.get()()
