"""A bar for calls of the library that take long: on standard error in a terminal, or in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

DELAY = 2.0
"""Seconds after which a call shows a bar."""


class ProgressBar:
    """How far a call is, shown once it has taken two seconds.

    Args:
        seen: Somebody looks at standard error, or at a notebook.
    """

    def __init__(self, seen: bool) -> None:
        self._seen = seen
        self._from = time.monotonic() + DELAY
        self._bar: Any = None

    def tell(self, done: float, total: float | None, message: str) -> None:
        """Shows how far the call is.

        Args:
            done: How much is done.
            total: Of how much; None where that is not known.
            message: The same in words.
        """
        if not self._seen or time.monotonic() < self._from:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=1.0, leave=False, bar_format="{desc} {percentage:3.0f}% |{bar}|")
        self._bar.total, self._bar.n = total, done
        self._bar.set_description_str(message)

    def count(self, done: int, total: int | None, unit: str) -> None:
        """The same for things that are counted."""
        self.tell(done, total, f"{done} {unit}" if total is None else f"{done} of {total} {unit}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bar() -> Generator[ProgressBar]:
    """A bar for as long as this lasts."""
    bar = ProgressBar(sys.stderr.isatty() or "ipykernel" in sys.modules)
    try:
        yield bar
    finally:
        bar.close()
