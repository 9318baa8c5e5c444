"""The errors a caller can meet. Imports nothing, crosses the worker's pipe as data, becomes a reply in one place.

Wording: what failed, the value that came, the values allowed; `next_step` says what to call or change.
"""

from __future__ import annotations

from typing import ClassVar


class NnterpError(Exception):
    """Base of every error that the package raises on purpose.

    Args:
        message: What failed, with the value that was given and the values that are allowed.
        next_step: What to call or change. Empty when the message says it all.
        command_step: The same for someone at the command line, where it differs.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, next_step: str = "", command_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.command_step = command_step

    def __reduce__(self) -> tuple[type[NnterpError], tuple[str, str, str]]:
        return type(self), (self.message, self.next_step, self.command_step)


class InvalidRequest(NnterpError, ValueError):
    """A parameter is missing, misspelt, out of range or contradicts another."""

    code = "invalid_request"


class UnknownModel(NnterpError, LookupError):
    """No model can be found or read under this name."""

    code = "unknown_model"


class NoModel(NnterpError, LookupError):
    """The call needs a loaded model and none is loaded, or more than one and none was named."""

    code = "no_model"


class StaleHandle(NnterpError, LookupError):
    """The handle of a model that is no longer loaded."""

    code = "stale_handle"


class Unsupported(NnterpError, NotImplementedError):
    """The architecture, backend or installed library cannot do this."""

    code = "unsupported"


class OutOfMemory(NnterpError, MemoryError):
    """The computation does not fit the device or the host."""

    code = "out_of_memory"


class LimitExceeded(NnterpError, ValueError):
    """A limit of the server was passed."""

    code = "limit_exceeded"


class TimedOut(NnterpError, TimeoutError):
    """The call ran past its time."""

    code = "timed_out"


class Cancelled(NnterpError):
    """The client cancelled the call."""

    code = "cancelled"


class WorkerLost(NnterpError, ConnectionError):
    """The model's process ended."""

    code = "worker_lost"


class Forbidden(NnterpError, PermissionError):
    """The person who started the server does not allow this."""

    code = "forbidden"


class Internal(NnterpError, RuntimeError):
    """A bug in this package; the message has a log id, never a traceback."""

    code = "internal"


_CLASSES: tuple[type[NnterpError], ...] = (
    InvalidRequest,
    UnknownModel,
    NoModel,
    StaleHandle,
    Unsupported,
    OutOfMemory,
    LimitExceeded,
    TimedOut,
    Cancelled,
    WorkerLost,
    Forbidden,
    Internal,
)
BY_CODE: dict[str, type[NnterpError]] = {cls.code: cls for cls in _CLASSES}
"""Every error class under its code."""

STOPS = (Cancelled, TimedOut)
"""Errors that stop a call from outside, and so say nothing about the model."""


def is_panic(error: BaseException) -> bool:
    """True for panics of libraries in Rust, which are no `Exception` but leave the process usable."""
    return type(error).__module__ == "pyo3_runtime"
