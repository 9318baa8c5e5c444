"""Ctrl-C ends a process of the command line with one line on standard error and exit code 130, whatever it is doing."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

EXIT_CODE = 130
"""The exit code of an interrupted command: 128 and the number of the signal, as in a shell."""

_GRACE = 2.0
"""Seconds to unwind. Threads that download, or libraries that catch everything, must not delay the end further."""


def announce_interruption() -> None:
    """Writes the one line and silences standard error: libraries print tracebacks while they unwind."""
    with suppress(OSError):  # nobody may read it any more
        os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def end_on_interrupt() -> None:
    """Makes SIGINT announce the interruption and unwind; a second one ends the process at once.

    It raises SystemExit: after a KeyboardInterrupt that passed through `exec`, Python ends itself by the signal.
    """
    signal.signal(signal.SIGINT, _interrupt)


def was_interrupted() -> bool:
    """True once the signal has come: what is raised after that may be a library's own error for it."""
    return signal.getsignal(signal.SIGINT) is _exit


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGINT, _exit)
    announce_interruption()
    _thread.start_new_thread(_exit_late, ())  # threading's own locks may be taken where the signal came
    raise SystemExit(EXIT_CODE)


def _exit_late() -> None:
    time.sleep(_GRACE)
    _exit()


def _exit(*_: Any) -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(EXIT_CODE)
