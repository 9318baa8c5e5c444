"""Faults injected for real into real servers: what the client sees, whether the next call works, what is still there.

`python -m tests.faults [WORD ...]` prints a table of all of them, or of those whose names contain one of the words.
"""

from __future__ import annotations

from tests.faults.clients import FAULTS as _CLIENTS
from tests.faults.disk import FAULTS as _DISK
from tests.faults.files import FAULTS as _FILES
from tests.faults.models import FAULTS as _MODELS
from tests.faults.requests import FAULTS as _REQUESTS
from tests.faults.scene import Fault
from tests.faults.servers import FAULTS as _SERVERS
from tests.faults.timing import FAULTS as _TIMING
from tests.faults.workers import FAULTS as _WORKERS

FAULTS: tuple[Fault, ...] = (
    *_REQUESTS,
    *_CLIENTS,
    *_WORKERS,
    *_MODELS,
    *_FILES,
    *_TIMING,
    *_DISK,
    *_SERVERS,
)
"""All of them; those that share a server stand together."""
