"""A bar for calls of the library that take long: on standard error in a terminal, or in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import Any

DELAY = 2.0
"""Seconds after which a call shows a bar."""


class ProgressBar:
    """The progress of a call, shown by a timer: a single long pass reports nothing until it ends.

    Args:
        seen: Somebody looks at standard error, or at a notebook.
    """

    def __init__(self, seen: bool) -> None:
        self._state: tuple[float, float | None, str] = (0.0, None, "running")
        self._bar: Any = None
        self._lock = Lock()
        self._timer = Timer(DELAY, self._show)
        self._timer.daemon = True
        if seen:
            self._timer.start()

    def tell(self, done: float, total: float | None, message: str) -> None:
        """Shows how far the call is, once a bar is shown.

        Args:
            done: How much is done.
            total: Of how much; None where that is not known.
            message: The same in words.
        """
        with self._lock:
            self._state = (done, total, message)
            self._draw()

    def count(self, done: int, total: int | None, unit: str) -> None:
        """The same for things that are counted."""
        self.tell(done, total, f"{done} {unit}" if total is None else f"{done} of {total} {unit}")

    def close(self) -> None:
        """Takes the bar away."""
        self._timer.cancel()
        with self._lock:
            if self._bar is not None:
                self._bar.close()

    def _show(self) -> None:
        from tqdm.auto import tqdm

        with self._lock:
            if not self._timer.finished.is_set():
                self._bar = tqdm(total=1.0, leave=False, bar_format="{desc} {percentage:3.0f}% |{bar}|")
                self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.n, self._bar.total, message = self._state
            self._bar.set_description_str(message)


@contextmanager
def progress_bar() -> Generator[ProgressBar]:
    """A bar for as long as this lasts."""
    bar = ProgressBar(sys.stderr.isatty() or "ipykernel" in sys.modules)
    try:
        yield bar
    finally:
        bar.close()
