"""Who may speak to a server over HTTP, and how much: each promise of SECURITY.md on a real server process."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tests.serving import Caller, HttpServer, http, stdio

TOKEN = "a-Token.of~the+tests/1234=="
HOST = "lab.example.org"
PAGE = "https://lab.example.org"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
ROUTES = [
    ("POST", "/mcp"),
    ("GET", "/mcp"),
    ("DELETE", "/mcp"),
    ("GET", "/sse"),
    ("POST", "/messages/"),
    ("POST", "/messages/?session_id=0123456789abcdef0123456789abcdef"),
    ("GET", "/messages/"),
    ("OPTIONS", "/mcp"),
    ("GET", "/nothing"),
    ("GET", "/health/../mcp"),
    ("POST", "/health"),
]


@dataclass
class Reply:
    """An answer; the body of a stream is left unread."""

    status: int
    headers: Message
    body: bytes


def place(server: HttpServer) -> tuple[str, int]:
    return "127.0.0.1", urlsplit(server.address).port or 0


def ask(
    server: HttpServer, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Reply:
    connection = HTTPConnection(*place(server), timeout=30)
    try:
        connection.request(method, path, body, {"Host": f"{HOST}:443"} | JSON | dict(headers or {}))
        response = connection.getresponse()
        streams = response.headers.get_content_type() == "text/event-stream"
        return Reply(response.status, response.headers, b"" if streams else response.read())
    finally:
        connection.close()


@contextmanager
def connected(server: HttpServer, sent: bytes) -> Iterator[socket.socket]:
    """A bare connection on which something was sent."""
    with socket.create_connection(place(server), timeout=30) as connection:
        connection.sendall(sent)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    parts: list[bytes] = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def message(reply: Reply) -> str:
    """What a client shows: a refusal is an error of JSON-RPC, whatever its status."""
    answer = json.loads(reply.body)
    assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", None, -32000)
    return answer["error"]["message"]


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


@pytest.fixture(scope="module")
def guarded() -> Generator[HttpServer]:
    """A server beyond loopback."""
    names = {"allowed_hosts": json.dumps([HOST]), "allowed_origins": json.dumps([PAGE])}
    with http(host="0.0.0.0", token=TOKEN, max_body=100_000, **names) as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Generator[HttpServer]:
    """A server on loopback, as it comes, but for waits that are too long for a test."""
    waits = (
        "from nnterp_mcp.server import connections, limits\nconnections.HEADER_SECONDS = limits.BODY_SECONDS = 1.0\n"
    )
    with http(first=waits, max_body=100_000) as server:
        yield server


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_demands_the_token(method: str, path: str, guarded: HttpServer) -> None:
    without = ask(guarded, method, path)
    wrong = ask(guarded, method, path, {"Authorization": f"Bearer {TOKEN}x"})

    assert (without.status, wrong.status) == (401, 401)
    assert without.headers["WWW-Authenticate"] == 'Bearer realm="nnterp-mcp"'
    assert wrong.headers["WWW-Authenticate"].startswith('Bearer realm="nnterp-mcp", error="invalid_token", ')
    assert message(without) == (
        "forbidden: the server demands a token. Send the header Authorization: Bearer TOKEN, with the server's."
    )
    assert message(wrong).startswith("forbidden: the bearer token is not this server's. ")
    assert ask(guarded, method, path, BEARER).status != 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
        {"Authorization": "Bearer \xe9\xff"},
        {"Cookie": f"access_token={TOKEN}"},
        {"X-Authorization": f"Bearer {TOKEN}"},
    ],
)
def test_nothing_but_the_token_will_do(headers: dict[str, str], guarded: HttpServer) -> None:
    assert ask(guarded, "POST", f"/mcp?access_token={TOKEN}", headers).status == 401


def test_two_credentials_are_none(guarded: HttpServer) -> None:
    twice = head("GET", "/nothing", *[f"Authorization: Bearer {TOKEN}"] * 2, "Connection: close")
    once = head("GET", "/nothing", f"Authorization: bearer {TOKEN}", "Connection: close")

    with connected(guarded, twice) as connection:
        assert everything(connection).startswith(b"HTTP/1.1 401 ")
    with connected(guarded, once) as connection:
        assert everything(connection).startswith(b"HTTP/1.1 404 ")


def test_on_loopback_too_a_token_that_is_set_is_demanded() -> None:
    with http(token=TOKEN) as server:
        assert ask(server, "POST", "/mcp", {"Host": "localhost"}, b"{}").status == 401
        assert ask(server, "POST", "/mcp", {"Host": "localhost"} | BEARER, b"{}").status == 400


def test_health_says_nothing(guarded: HttpServer) -> None:
    health = ask(guarded, "GET", "/health")

    assert (health.status, health.body) == (204, b"")
    assert {name.lower() for name in health.headers} == {"date"}


@pytest.mark.parametrize("transport", ["http", "sse"])
def test_a_client_with_the_token_works(transport: str, guarded: HttpServer) -> None:
    headers = BEARER | {"Host": HOST}
    address = f"http://127.0.0.1:{place(guarded)[1]}"

    async def call() -> bool:
        async with httpx2.AsyncClient(headers=headers) as http_client:
            source = (
                streamable_http_client(f"{address}/mcp", http_client=http_client)
                if transport == "http"
                else sse_client(f"{address}/sse", headers)
            )
            async with Client(source) as client:
                return bool((await client.call_tool("session", {})).is_error)

    assert anyio.run(call) is False


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/health")])
@pytest.mark.parametrize("bound", ["beyond", "loopback"])
def test_every_route_checks_host_and_origin(
    method: str, path: str, bound: str, guarded: HttpServer, plain: HttpServer
) -> None:
    server, host = (guarded, f"{HOST}:443") if bound == "beyond" else (plain, "localhost:80")

    def status(**headers: str) -> int:
        return ask(server, method, path, {"Host": host} | BEARER | headers).status

    for name in ("evil.example", f"{HOST}.evil.example", f"evil{HOST}", "169.254.169.254", "127.0.0.1.evil.example"):
        assert status(Host=name) == 421, name
    for page in ("https://evil.example", "null", f"{PAGE}.evil.example", "http://localhost.evil.example"):
        assert status(Origin=page) == 403, page
    for rest in ("@evil.example", ",evil.example", ", evil.example:80", "/evil.example", "evil", ":80", "99999", "#a"):
        assert status(Host=f"localhost:80{rest}") == 421, rest
        assert status(Origin=f"http://localhost:80{rest}") == 403, rest
    assert status() not in (421, 403)
    assert status(Host="localhost", Origin="http://localhost:3000") not in (421, 403)
    assert (status(Origin=PAGE) == 403) == (bound == "loopback")
    assert (status(Host=HOST) == 421) == (bound == "loopback")


@pytest.mark.parametrize("path", ["/mcp", "/messages/", "/nothing"])
def test_a_declared_body_is_refused_before_it_is_read(path: str, plain: HttpServer) -> None:
    sent = head("POST", path, "Content-Type: application/json", "Content-Length: 100001")
    with connected(plain, sent) as connection:
        answer = everything(connection)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"limit_exceeded: the body is larger than 100000 bytes (max_body)" in answer


@pytest.mark.parametrize("path", ["/mcp", "/messages/", "/nothing"])
def test_a_body_without_a_length_is_refused_once_it_is_too_large(path: str, plain: HttpServer) -> None:
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    sent = head("POST", path, "Content-Type: application/json", "Transfer-Encoding: chunked")
    with connected(plain, sent + chunk * 11) as connection:
        assert everything(connection).startswith(b"HTTP/1.1 413 ")
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "filler": "x" * 90_000}).encode()
    assert ask(plain, "POST", path, {"Host": "localhost"}, body).status != 413


def test_who_is_slow_is_given_up(plain: HttpServer) -> None:
    """Headers and bodies that do not come, beside many others that do not, while the server works on."""
    slow = {
        b"": b"",
        b"POST /mcp HTTP/1.1\r\nHost: local": b"",
        head("POST", "/mcp", "Content-Length: 10") + b"{": b"HTTP/1.1 408 ",
        head("POST", "/messages/", "Transfer-Encoding: chunked") + b"1\r\n{": b"HTTP/1.1 408 ",
    }
    for sent, answer in slow.items():
        with connected(plain, sent) as connection:
            begun = time.monotonic()
            crowd = [socket.create_connection(place(plain)) for _ in range(50)]
            assert ask(plain, "GET", "/health", {"Host": "localhost"}).status == 204
            assert everything(connection)[:13] == answer
            assert time.monotonic() - begun < 10
            for one in crowd:
                one.close()


def test_who_hangs_up_half_way_is_forgotten(plain: HttpServer) -> None:
    for sent in (b"POST /mcp HTTP/1.1\r\n", head("POST", "/mcp", "Content-Length: 10") + b"{", head("GET", "/sse")):
        with connected(plain, sent) as connection:
            connection.shutdown(socket.SHUT_WR)
            everything(connection)  # returns, for the server hangs up too
    assert ask(plain, "GET", "/health", {"Host": "localhost"}).status == 204


def test_who_asks_too_often_waits() -> None:
    with http(max_requests_per_minute=5) as server:
        replies = [
            ask(server, "GET", "/health", {"Host": "localhost", "X-Forwarded-For": f"10.0.0.{n}"}) for n in "123456"
        ]

    assert [reply.status for reply in replies] == [204] * 5 + [429]
    assert 1 <= int(replies[-1].headers["Retry-After"]) <= 60
    assert message(replies[-1]) == (
        "limit_exceeded: more than 5 requests in a minute (max_requests_per_minute). "
        f"Try again in {replies[-1].headers['Retry-After']} s."
    )


def _refused(client: Caller) -> MCPError | None:
    try:
        client.call("session")
    except MCPError as error:
        return error
    return None


@pytest.mark.parametrize("through", ["client", "bridge"])
def test_a_client_is_told_when_to_come_back(through: str) -> None:
    with http(max_requests_per_minute=12) as server:
        command = [sys.executable, "-m", "nnterp_mcp", "connect", f"{server.address}/mcp"]
        with server.client() if through == "client" else stdio(command) as client:
            raised = [_refused(client) for _ in range(12)][-1]

    assert raised is not None
    assert re.search(r"more than 12 requests in a minute .*Try again in \d+ s\.", raised.error.message)
    assert 1 <= raised.error.data["retryAfter"] <= 60


def test_the_counts_are_of_an_address_and_a_minute() -> None:
    from nnterp_mcp.server.limits import RateLimit

    now = 1000.0
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["client"][0])

    async def ignore(message: Any) -> None:
        pass

    limit = RateLimit(app, 2, lambda: now)

    def asks(address: str, session: str = "") -> bool:
        before = len(passed)
        headers = [(b"mcp-session-id", session.encode())] if session else []
        anyio.run(limit, {"type": "http", "client": (address, 1), "headers": headers}, ignore, ignore)
        return len(passed) > before

    assert [asks("a"), asks("a"), asks("a"), asks("b")] == [True, True, False, True]
    now += 59.9
    assert not asks("a")
    now += 0.2
    assert asks("a")
    # Sessions count by themselves, until their address has had ten clients' worth.
    assert [asks("c", f"session {n // 3}") for n in range(9)] == [True, True, False] * 3
    assert [asks("d", f"session {n}") for n in range(25)] == [True] * 20 + [False] * 5


def opener(server: HttpServer, transport: str) -> Callable[[], tuple[int, socket.socket]]:
    """Opens a session and keeps its connection."""
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
    }
    body = json.dumps(hello).encode()
    headers = [f"{name}: {value}" for name, value in JSON.items()]
    sent = (
        head("GET", "/sse")
        if transport == "sse"
        else head("POST", "/mcp", *headers, f"Content-Length: {len(body)}") + body
    )

    def begin() -> tuple[int, socket.socket]:
        connection = socket.create_connection(place(server), timeout=30)
        connection.sendall(sent)
        return int(connection.recv(4096).split()[1]), connection

    return begin


@pytest.mark.parametrize("transport", ["http", "sse"])
def test_sessions_are_counted(transport: str) -> None:
    with http(max_sessions=2) as server:
        begin = opener(server, transport)
        sessions = [begin() for _ in range(3)]
        assert [status for status, _ in sessions] == [200, 200, 503]
        for _, connection in sessions:
            connection.close()
        if transport == "sse":  # one that hangs up makes room; over streamable HTTP a session outlives its connection
            time.sleep(0.5)
            assert begin()[0] == 200
