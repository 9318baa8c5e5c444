"""Forwards messages between a client on stdio and a server that listens on HTTP.

Both eras of the protocol pass. A request of 2026-07-28 states its version, and is cancelled by closing the connection;
before that, a client opens a session with `initialize`, and cancels with a notification. Messages that a server sends
outside of any request are not forwarded: this server sends none.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskGroup
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
)
from mcp_types import (
    CONNECTION_CLOSED,
    PROTOCOL_VERSION_META_KEY,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from nnterp_mcp.errors import Cancelled, Forbidden, InvalidRequest, LimitExceeded, NnterpError, TimedOut, WorkerLost
from nnterp_mcp.server import replies
from nnterp_mcp.server.pipes import GRACE

logger = logging.getLogger(__name__)

SILENCE = 60.0
"""Seconds without a byte after which a server counts as lost: it sends a keep-alive every 15 s."""

_CONNECT = 10.0
"""Seconds to open a connection."""

_GOODBYE = 2.0
"""Seconds that a session's end may take once the client has left."""

_NAMED = {**NAME_BEARING_METHODS, **dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId")}
"""The parameter that the header `Mcp-Name` repeats, by method."""

_SESSION_HEADER = "mcp-session-id"
_INITIALIZED = JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized")

Send = Callable[[JSONRPCMessage], Awaitable[None]]


def http_client(token: str | None, trust_env: bool = True) -> httpx2.AsyncClient:
    """An HTTP client with the token and a timeout for silent servers."""
    return httpx2.AsyncClient(
        headers={} if token is None else {"Authorization": f"Bearer {token}"},
        timeout=httpx2.Timeout(_CONNECT, read=SILENCE, pool=None),
        limits=httpx2.Limits(max_connections=None),
        trust_env=trust_env,
    )


class Bridge:
    """Forwards one client's messages to a server and its answers back. Every request is answered.

    Args:
        address: The server's URL of streamable HTTP.
        http: The HTTP client.
        send: Sends a message to the client.
    """

    def __init__(self, address: str, http: httpx2.AsyncClient, send: Send) -> None:
        self._address = address
        self._http = http
        self._send = send
        self._scopes: dict[RequestId, anyio.CancelScope] = {}
        self._abandoned: set[RequestId] = set()
        self._reached = False
        self._handshake: JSONRPCRequest | None = None
        self._session: str | None = None
        self._version: str | None = None
        self._reopening = anyio.Lock()

    async def greet(self) -> None:
        """Says on standard error if no server answers, for whoever starts the bridge: a client learns it later."""
        try:
            await self._http.head(self._address)
        except httpx2.HTTPError as error:
            print(
                f"no server answers at {self._address} ({_cause(error)}): requests are refused until one does",
                file=sys.stderr,
                flush=True,
            )

    async def carry(self, messages: AsyncIterator[JSONRPCMessage]) -> None:
        """Forwards messages until the client closes its input, then answers what it has asked and ends."""
        async with anyio.create_task_group() as tasks:
            async for message in messages:
                await self._pass_on(message, tasks)
            await self._answer_all()
            tasks.cancel_scope.cancel()
        await self._end_session()

    async def _answer_all(self) -> None:
        """Waits briefly for the server's answers and refuses the requests that are then still in flight.

        As long as the server has answered nothing, connecting to it may take longer, and the client should learn why.
        """
        with anyio.move_on_after(GRACE if self._reached else GRACE + _CONNECT):
            await self._until_answered()
        for scope in self._scopes.values():
            scope.cancel()
        await self._until_answered()

    async def _until_answered(self) -> None:
        while self._scopes:
            await anyio.sleep(0.02)

    async def _pass_on(self, message: JSONRPCMessage, tasks: TaskGroup) -> None:
        if isinstance(message, JSONRPCRequest):
            scope = self._scopes[message.id] = anyio.CancelScope()
            tasks.start_soon(self._ask, message, scope)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._cancel(message, tasks)
        elif self._handshake is not None:
            await self._tell(message)  # in order: a server accepts no request before this notification

    def _cancel(self, notification: JSONRPCNotification, tasks: TaskGroup) -> None:
        cancelled = (notification.params or {}).get("requestId")
        if cancelled not in self._scopes:
            return
        self._abandoned.add(cancelled)
        if self._handshake is None:
            self._scopes[cancelled].cancel()
        else:
            tasks.start_soon(self._tell, notification)

    async def _ask(self, request: JSONRPCRequest, scope: anyio.CancelScope) -> None:
        error: NnterpError | None = None
        try:
            with scope:
                error = None if await self._exchange(request) else self._broken(request)
            if scope.cancelled_caught:
                error = Cancelled("the client closed its input before the server had answered")
        except NnterpError as raised:
            error = raised
        except httpx2.HTTPError as raised:
            error = self._unreachable(request, raised)
        except ValidationError:
            error = InvalidRequest(f"{self._address} does not speak MCP", "Give the URL of a server, with its path.")
        if error is not None and request.id not in self._abandoned:
            logger.warning(replies.worded(error))
            await self._send(_refusal(request, error))
        self._abandoned.discard(request.id)
        self._scopes.pop(request.id, None)  # only now: the bridge ends when no request is in flight

    async def _exchange(self, request: JSONRPCRequest) -> bool:
        """Sends a request and forwards the messages that come back; returns False if the answer was not among them."""
        session = self._session
        async with self._posted(request) as response:
            if not (response.status_code == 404 and session and _version(request) is None):
                return await self._hand_on(request, response)
        await self._reopen(session)
        async with self._posted(request) as response:
            return await self._hand_on(request, response)

    async def _hand_on(self, request: JSONRPCRequest, response: httpx2.Response) -> bool:
        if response.status_code != 200:
            await self._send(await self._refused(request, response))
            return True
        async for message in _messages(response):
            if request.method == "initialize" and isinstance(message, JSONRPCResponse):
                self._begin_session(request, response, message)
            await self._send(message)
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                return True
        return False

    def _begin_session(self, request: JSONRPCRequest, response: httpx2.Response, answer: JSONRPCResponse) -> None:
        self._handshake = request
        self._session = response.headers.get(_SESSION_HEADER)
        self._version = answer.result.get("protocolVersion")

    async def _reopen(self, lost: str) -> None:
        """Repeats the client's handshake with a server that has lost its session."""
        async with self._reopening:
            if self._session != lost or self._handshake is None:
                return
            logger.warning("%s knows the session no more: it was started anew, and its models are gone", self._address)
            self._session = self._version = None
            async with self._posted(self._handshake) as response:
                async for message in _messages(response):
                    if isinstance(message, JSONRPCResponse):
                        self._begin_session(self._handshake, response, message)
            await self._tell(_INITIALIZED)

    async def _tell(self, message: JSONRPCMessage) -> None:
        """Sends a notification; if the server cannot be reached, the next request will report it."""
        with suppress(httpx2.HTTPError):
            async with self._posted(message) as response:
                await response.aread()

    async def _end_session(self) -> None:
        if self._session is not None:
            with anyio.move_on_after(_GOODBYE), suppress(httpx2.HTTPError):
                await self._http.delete(self._address, headers=self._headers())

    @asynccontextmanager
    async def _posted(self, message: JSONRPCMessage) -> AsyncGenerator[httpx2.Response]:
        content, headers = message.model_dump_json(by_alias=True, exclude_unset=True), self._headers(message)
        async with self._http.stream("POST", self._address, content=content, headers=headers) as response:
            self._reached = True
            yield response

    def _headers(self, message: JSONRPCMessage | None = None) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if isinstance(message, JSONRPCRequest) and (version := _version(message)) is not None:
            name = (message.params or {}).get(_NAMED.get(message.method, ""))
            named = {MCP_NAME_HEADER: encode_header_value(name)} if isinstance(name, str) else {}
            return headers | {MCP_PROTOCOL_VERSION_HEADER: version, MCP_METHOD_HEADER: message.method} | named
        if isinstance(message, JSONRPCRequest) and message.method == "initialize":
            return headers
        kept = {_SESSION_HEADER: self._session, MCP_PROTOCOL_VERSION_HEADER: self._version}
        return headers | {name: value for name, value in kept.items() if value is not None}

    async def _refused(self, request: JSONRPCRequest, response: httpx2.Response) -> JSONRPCError:
        """The server's own error, or one made from its HTTP status."""
        body, status = await response.aread(), response.status_code
        words = body[:200].decode(errors="replace")
        with suppress(ValidationError):
            answer = jsonrpc_message_adapter.validate_json(body)
            if isinstance(answer, JSONRPCError):
                if status not in _OURS:
                    return answer.model_copy(update={"id": request.id})
                words = answer.error.message
        if 300 <= status < 400:
            elsewhere = response.headers.get("location", "elsewhere")
            error = InvalidRequest(f"{self._address} sends to {elsewhere}", "Connect to that URL, if you trust it.")
        else:
            kind, step = _REFUSALS.get(status, (InvalidRequest, "Is it the URL of an MCP server, with its path?"))
            said = f"{response.reason_phrase}. {words}".strip(". \n")
            error = kind(f"{self._address} answered {status}: {said}", step)
        logger.warning(replies.worded(error))
        return _refusal(request, error)

    def _broken(self, request: JSONRPCRequest, cause: str = "it closed the connection") -> NnterpError:
        return WorkerLost(
            f"the server at {self._address} left {request.method} unanswered: {cause}",
            "If it was started anew, its models are gone: session lists what is loaded; finished runs are kept.",
        )

    def _unreachable(self, request: JSONRPCRequest, error: httpx2.HTTPError) -> NnterpError:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return WorkerLost(
                f"no server answers at {self._address}: {_cause(error)}",
                "Start it there (nnterp-mcp serve --transport http), then call again.",
            )
        if isinstance(error, httpx2.ReadTimeout):
            return TimedOut(
                f"the server at {self._address} said nothing for {SILENCE:g} s",
                "It hangs, or the network is down. Once it answers again, session lists the runs that went on.",
            )
        return self._broken(request, str(error) or type(error).__name__)


_OURS = {401, 403, 421}
"""Statuses that only the person who started the bridge or the server can resolve."""

_REFUSALS: dict[int, tuple[type[NnterpError], str]] = {
    401: (Forbidden, "Put the server's token into the variable that --token-env names (NNTERP_MCP_TOKEN)."),
    403: (Forbidden, "The server must allow this origin: --allowed-origin."),
    413: (LimitExceeded, "Send less at once."),
    421: (Forbidden, "The server must allow the name by which it is reached: --allowed-host."),
    429: (LimitExceeded, "Wait a minute."),
    503: (LimitExceeded, "Try again later, or with fewer clients."),
}
"""The error and next step for an HTTP status."""


def _cause(error: httpx2.HTTPError) -> str:
    return str(error) or "it takes too long to connect"


def _version(message: JSONRPCRequest) -> str | None:
    meta: Any = (message.params or {}).get("_meta")
    version = meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None
    return version if isinstance(version, str) else None


async def _messages(response: httpx2.Response) -> AsyncIterator[JSONRPCMessage]:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        async for event in httpx2.EventSource(response, max_event_size=None):
            if event.data:
                yield jsonrpc_message_adapter.validate_json(event.data)
    else:
        yield jsonrpc_message_adapter.validate_json(await response.aread())


def _refusal(request: JSONRPCRequest, error: NnterpError) -> JSONRPCError:
    return JSONRPCError(
        jsonrpc="2.0", id=request.id, error=ErrorData(code=CONNECTION_CLOSED, message=replies.worded(error))
    )
