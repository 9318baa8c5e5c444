"""HTTP clients on bare sockets: they speak each era of the protocol, and leave as no library would."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

_CLIENT = {"name": "wire", "version": "0"}
_ACCEPT = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
_LAST_HANDSHAKE = HANDSHAKE_PROTOCOL_VERSIONS[-1]
_LAST_MODERN = MODERN_PROTOCOL_VERSIONS[-1]


class Wire:
    """One connection to a server."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=30)
        self._read = b""

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fields = {"Host": "127.0.0.1", "Content-Length": len(body)} | _ACCEPT | dict(headers or {})
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def until(self, mark: bytes) -> bytes:
        """What came up to and with a mark."""
        while mark not in self._read:
            part = self._socket.recv(65_536)
            if not part:
                raise ConnectionError(f"hung up before {mark!r}, after {self._read[-500:]!r}")
            self._read += part
        found, _, self._read = self._read.partition(mark)
        return found + mark

    def reset(self) -> None:
        """Leaves without a goodbye: the server's next packet is answered with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close_half(self) -> None:
        """Says that nothing more will be sent, and goes on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


def call_body(tool: str, arguments: Mapping[str, Any], meta: Mapping[str, Any] | None = None, number: int = 1) -> bytes:
    params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": "wire", **(meta or {})}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


def call_modern(address: str, tool: str, **arguments: Any) -> Wire:
    """A call in the era without a handshake."""
    meta = {
        PROTOCOL_VERSION_META_KEY: _LAST_MODERN,
        CLIENT_INFO_META_KEY: _CLIENT,
        CLIENT_CAPABILITIES_META_KEY: {},
    }
    headers = {"MCP-Protocol-Version": _LAST_MODERN, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    wire = Wire(address)
    wire.send("POST", "/mcp", call_body(tool, arguments, meta), headers)
    return wire


def call_legacy(address: str, tool: str, **arguments: Any) -> Wire:
    """A call in a session that was opened by a handshake."""
    opening = Wire(address)
    opening.send("POST", "/mcp", _initialize())
    head = opening.until(b"\r\n\r\n").decode().lower()
    session = next(line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("mcp-session-id"))
    opening.close()
    headers = {"MCP-Protocol-Version": _LAST_HANDSHAKE, "Mcp-Session-Id": session}
    ready = Wire(address)
    ready.send("POST", "/mcp", b'{"jsonrpc": "2.0", "method": "notifications/initialized"}', headers)
    ready.until(b"\r\n\r\n")
    ready.close()
    wire = Wire(address)
    wire.send("POST", "/mcp", call_body(tool, arguments), headers)
    return wire


def call_sse(address: str, tool: str, **arguments: Any) -> Wire:
    """A call over SSE; the connection is the stream of its answers."""
    stream = Wire(address)
    stream.send("GET", "/sse")
    stream.until(b"event: endpoint\r\ndata: ")
    path = stream.until(b"\r\n").decode().strip()
    bodies = [_initialize(), b'{"jsonrpc": "2.0", "method": "notifications/initialized"}', call_body(tool, arguments)]
    for body in bodies:
        post = Wire(address)
        post.send("POST", path, body)
        post.until(b"\r\n\r\n")
        post.close()
    return stream


CALLS = {"http, no handshake": call_modern, "http, session": call_legacy, "sse": call_sse}
"""A call for each way in which a client can hold its connection."""


def _initialize() -> bytes:
    params = {"protocolVersion": _LAST_HANDSHAKE, "capabilities": {}, "clientInfo": _CLIENT}
    return json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).encode()
