"""Limits on clients: requests per minute, size and duration of a request's body, open sessions.

Each limit is ASGI middleware. A refusal is a JSON-RPC error that names the limit.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.server.refusals import http_refusal
from nnterp_mcp.server.values import MOST_VALUES, too_many_values

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_SECONDS = 30.0
"""How long a request may take to arrive."""

_MINUTE = 60.0

_CLIENTS_OF_AN_ADDRESS = 10
"""The limit of an address, in limits of a client."""


def _refusal(status: int, reason: str, retry_after: int | None = None) -> JSONResponse:
    """An answer sent before the body was read; it closes the connection."""
    headers = {"Connection": "close"} | ({} if retry_after is None else {"Retry-After": str(retry_after)})
    step = "" if retry_after is None else f"Try again in {retry_after} s."
    return http_refusal(status, LimitExceeded(reason, step), headers, retry_after)


class RateLimit:
    """Answers 429 to a client with too many requests. All counts restart every minute.

    A client is a session, so that clients who share an address (behind a tunnel or a proxy) are counted separately, or
    an address without a session. Since anyone may invent a session, an address has ten times the limit of a client.
    """

    def __init__(self, app: ASGIApp, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._per_minute = per_minute
        self._clock = clock
        self._begun = -math.inf
        self._requests: Counter[tuple[str, str | None]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request."""
        app = self._app
        if scope["type"] == "http" and (wait := self._wait(scope["client"][0] if scope.get("client") else "", scope)):
            reason = f"more than {self._per_minute} requests in a minute (max_requests_per_minute)"
            app = _refusal(429, reason, wait)
        await app(scope, receive, send)

    def _wait(self, address: str, scope: Scope) -> int:
        now = self._clock()
        if now - self._begun >= _MINUTE:
            self._begun = now
            self._requests.clear()
        session = Headers(scope=scope).get("mcp-session-id") or _session_of(scope.get("query_string", b""))
        limits = {(address, session): self._per_minute, (address, None): _CLIENTS_OF_AN_ADDRESS * self._per_minute}
        self._requests.update(limits.keys())
        late = any(self._requests[who] > most for who, most in limits.items())
        return math.ceil(self._begun + _MINUTE - now) if late else 0


def _session_of(query: bytes) -> str:
    return parse_qs(query.decode("latin-1"), max_num_fields=8).get("session_id", [""])[0] if len(query) < 1000 else ""


class BodyLimit:
    """Reads a request's whole body first; refuses one that is too large or has too many values (413) or is too slow
    (408)."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._largest:
            await self._too_large(scope, receive, send)
            return
        try:
            with anyio.fail_after(BODY_SECONDS):
                read = await self._read(receive)
        except TimeoutError:
            await _refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s")(scope, receive, send)
            return
        if read is None:
            await self._too_large(scope, receive, send)
            return
        if too_many_values(read.get("body", b"")):
            reason = f"the body holds more than {MOST_VALUES:,} values (a name or a list counts as eight)"
            await _refusal(413, reason)(scope, receive, send)
            return
        await self._app(scope, _replay(read, receive), send)

    async def _read(self, receive: Receive) -> Message | None:
        """The body as one message, or the disconnect message; None if the body is too large."""
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self._largest:
                return None
            if not message.get("more_body", False):
                return {"type": "http.request", "body": bytes(body), "more_body": False}
        return message

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _refusal(413, f"the body is larger than {self._largest} bytes (max_body)")(scope, receive, send)


def _replay(message: Message, receive: Receive) -> Receive:
    kept = [message]

    async def replay() -> Message:
        return kept.pop() if kept else await receive()

    return replay


class SessionLimit:
    """Answers 503 when too many sessions are open; for applications in which a request is a session."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or serves one request."""
        if self._open >= self._most:
            await _refusal(503, f"{self._open} sessions are open (max_sessions)", 60)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
