"""Faults between a worker and an NDIF service, in our own words: the service's may quote the API key."""

from __future__ import annotations

import json
import re

import httpx2
import websocket

from nnterp_mcp.errors import (
    Forbidden,
    Internal,
    InvalidRequest,
    NnterpError,
    OutOfMemory,
    TimedOut,
    UnknownModel,
    Unsupported,
    WorkerLost,
)
from nnterp_mcp.model.memory import RAN_OUT

_LOCAL = "Load the model with backend 'local' if it fits this machine."


def unreachable(host: str, error: Exception) -> NnterpError:
    """A service that does not answer at all."""
    if isinstance(error, httpx2.TimeoutException | websocket.WebSocketTimeoutException | TimeoutError):
        return TimedOut(f"NDIF at {host} does not answer in time", "Call again later; the handle stays valid.")
    if isinstance(error, websocket.WebSocketBadStatusException):
        return refusal(host, error.status_code, _detail(error.resp_body or b""))
    reason = (
        "refuses connections"
        if isinstance(error, ConnectionRefusedError) or "refused" in str(error)
        else (f"cannot be reached ({type(error).__name__})")
    )
    return WorkerLost(
        f"NDIF at {host} {reason}",
        "See whether it runs, and whether the address is right, which whoever starts the server gives with --ndif; "
        "then call again: the handle stays valid.",
    )


def judge_refusal(host: str, answer: httpx2.Response) -> None:
    """Passes over a good answer.

    Raises:
        Forbidden: The service refuses the key.
        Unsupported: It refuses this client's version, or speaks another protocol.
        WorkerLost: It cannot take requests now.
    """
    if answer.status_code >= 400:
        raise refusal(host, answer.status_code, _detail(answer.content))


def refusal(host: str, status: int, said: str = "") -> NnterpError:
    """The error behind an HTTP status with which a service turns something down, and what it says of that."""
    if status in (401, 403) or (status == 400 and "api key" in said.lower()):
        return _refused_key(host)
    if status == 400 and "version" in said.lower():
        return Unsupported(
            f"NDIF at {host} does not take this client: {said[:300]}", f"Install the version that it asks for. {_LOCAL}"
        )
    if status == 429:
        return WorkerLost(f"NDIF at {host} takes no more requests of this key now", "Call again later.")
    if status >= 500:
        return WorkerLost(
            f"NDIF at {host} cannot compute now (HTTP {status}){f': {said[:300]}' if said else ''}",
            "Call again in a few minutes; the handle stays valid.",
        )
    return Unsupported(
        f"what answers at {host} does not take NDIF's requests (HTTP {status})",
        "See whether the address is that of an NDIF service.",
    )


def _refused_key(host: str) -> Forbidden:
    return Forbidden(
        f"NDIF at {host} refuses the API key, or needs one",
        "Whoever starts the server sets NDIF_API_KEY in its environment; keys come from https://login.ndif.us.",
    )


def _detail(content: bytes) -> str:
    """The service's reason for a refusal."""
    try:
        body = json.loads(content)
    except ValueError:
        return ""
    return str(body.get("detail", "")) if isinstance(body, dict) else ""


_FAILURES: tuple[tuple[str, type[NnterpError], str, str], ...] = (
    (
        f"{RAN_OUT}|OutOfMemoryError|MemoryError",
        OutOfMemory,
        "ran out of memory",
        "Ask for fewer prompts, layers or positions.",
    ),
    (
        "CUDA error|actor died|ActorDiedError|evicted|was killed|restart|Error submitting request to model deployment",
        WorkerLost,
        "lost the model while it computed",
        "Call again: NDIF deploys the model anew.",
    ),
    ("timed? ?out|time limit", TimedOut, "stopped the request at its time limit", "Ask for less at once."),
    (
        "cannot switch its attention|attention implementation",
        Unsupported,
        "cannot let this model attend eagerly",
        _LOCAL,
    ),
    (
        "ModuleNotFoundError|not whitelisted|not allowed|AttributeError: module|UnknownPersistentIdError",
        Unsupported,
        "runs versions that do not fit this client",
        f"Compare them with nnsight.compare(). {_LOCAL}",
    ),
    (
        "could not be (?:deployed|loaded)|not (?:scheduled|deployed)|no deployment|RepositoryNotFound|Could not find|"
        "Cannot (?:deploy|load)|does not appear|is not a local folder|dedicated",
        UnknownModel,
        "does not serve this model",
        "Load one that it serves: session names them.",
    ),
)


def judge_failure(host: str, name: str, description: str) -> NnterpError:
    """The error behind what the service says of a request that failed: a traceback, or a sentence."""
    last = next((line.strip() for line in reversed(description.splitlines()) if line.strip()), "no reason given")[:300]
    for pattern, kind, what, next_step in _FAILURES:
        if re.search(pattern, description, re.IGNORECASE):
            return kind(f"NDIF at {host} {what} ({name}): {last}", next_step)
    if re.match(r"(IndexError|ValueError|RuntimeError): .*(size|shape|dimension|index)", last):
        return InvalidRequest(f"what was asked for does not fit {name}, as NDIF at {host} found: {last}")
    return Internal(f"NDIF at {host} could not run the request on {name}: {last}", f"Call again. {_LOCAL}")
