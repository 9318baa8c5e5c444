"""The way to an NDIF service: a service of a few lines that speaks its protocol, and the faults of networks."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import (
    Cancelled,
    Forbidden,
    Internal,
    NnterpError,
    OutOfMemory,
    TimedOut,
    Unsupported,
    WorkerLost,
)

KEY = "not-a-uuid-but-secret"


@dataclass
class StandIn:
    """A service on the loopback address, a thread for each connection.

    Attributes:
        refuse: Status and detail with which every request over HTTP is turned down; None takes it.
        messages: What is told on the socket of a request that was taken, one after another: text or bytes.
        then: What is done after the last of them: `close`, `reset` or `wait`.
        seen: Headers of the requests.
        at_once: Whether the socket is turned down already.
    """

    refuse: tuple[int, str] | None = None
    messages: list[dict[str, Any] | bytes] = field(default_factory=list)
    then: str = "wait"
    seen: list[str] = field(default_factory=list)
    at_once: bool = False
    taken: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1 << 16)
        self.seen.append(head.decode(errors="replace").lower())
        if head.startswith(b"GET /subscribe") and not self.at_once:
            self._subscribe(connection, head.decode())
        else:
            self._answer(connection, head)

    def _subscribe(self, connection: socket.socket, head: str) -> None:
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        accepted = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(accepted) + b"\r\n\r\n"
        )
        _send(connection, {"session_id": "one"})
        if not self.taken.wait(10):
            return
        for message in self.messages:
            _send(connection, message)
        if self.then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.then == "wait":
            self.ended.wait(20)
        connection.close()

    def _answer(self, connection: socket.socket, head: bytes) -> None:
        body = head.split(b"\r\n\r\n", 1)[1]
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += connection.recv(1 << 16)
        status, content = 200, {"id": "1", "status": "RECEIVED"}
        if self.refuse is not None:
            status, content = self.refuse[0], {"detail": self.refuse[1]}
        said = json.dumps(content).encode()
        connection.sendall(f"HTTP/1.1 {status} So\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said)
        connection.close()
        self.taken.set()


def _send(connection: socket.socket, message: dict[str, Any] | bytes) -> None:
    """A frame of the websocket protocol."""
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    kind = 0x82 if isinstance(message, bytes) else 0x81
    size = struct.pack("!BB", kind, len(data)) if len(data) < 126 else struct.pack("!BBH", kind, 126, len(data))
    connection.sendall(size + data)


@contextmanager
def standing_in(service: StandIn) -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=service.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            service.ended.set()


@pytest.fixture(scope="module")
def wire(tiny: Callable[..., Path]) -> Any:
    from transformers import AutoTokenizer

    from nnterp_mcp.engine.executors.ndif.model import wrap_for_wire

    folder = tiny("llama")
    return wrap_for_wire(str(folder), AutoTokenizer.from_pretrained(folder), None, False)


def send(wire: Any, host: str, check: Callable[[], None] = lambda: None) -> tuple[list[str], Any]:
    """What the service says of a request with one pass, and what it reads."""
    import torch

    from nnterp_mcp.engine.executors.ndif.client import Connection
    from nnterp_mcp.engine.executors.ndif.kernels import read_top
    from nnterp_mcp.engine.executors.ndif.traces import run_passes

    said: list[str] = []
    connection = Connection(host, "tiny", wire, "key", KEY, check, said.append)
    one = {"inputs": {"input_ids": torch.ones(1, 2, dtype=torch.long)}, "steps": [], "read": read_top}
    return said, run_passes(connection, [one | {"options": {}}])


def completed(values: dict[str, Any]) -> bytes:
    """A result as NDIF sends it: compressed, in an envelope that torch wrote."""
    import io

    import torch
    import zstandard
    from nnsight.schema.response import ResponseModel, Status

    content = io.BytesIO()
    torch.save(values, content)
    data = zstandard.ZstdCompressor().compress(content.getvalue())
    return ResponseModel(id="1", status=Status.COMPLETED, data=data).pickle()


def status(state: str, description: str = "") -> dict[str, Any]:
    return {"id": "1", "status": state, "description": description}


def test_the_place_in_the_queue_is_told_and_the_result_is_read(wire: Any) -> None:
    import torch

    found = [{"tokens": torch.tensor([3])}]
    service = StandIn(messages=[status("QUEUED", "Added to Queue at position 4."), completed({"found": found})])
    with standing_in(service) as host:
        said, result = send(wire, host)

    assert said == ["NDIF: queued, Added to Queue at position 4."]
    assert result[0]["tokens"].tolist() == [3]
    assert all(f"ndif-api-key: {KEY}" in head for head in service.seen)


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        ((401, "Missing or invalid API key."), Forbidden, "refuses the API key"),
        ((403, "Invalid API key."), Forbidden, "refuses the API key"),
        ((400, f"Invalid API key format: '{KEY}'."), Forbidden, "refuses the API key"),
        ((400, "Client nnsight version 0.8.1 is below the required 0.9.0."), Unsupported, "below the required 0.9.0"),
        ((404, "Not Found"), Unsupported, "does not take NDIF's requests"),
        ((429, "Too many requests"), WorkerLost, "takes no more requests"),
        ((503, "compute backend is reconnecting"), WorkerLost, "compute backend is reconnecting"),
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_a_request_that_is_turned_down(
    wire: Any, refusal: Any, kind: type[NnterpError], words: str, at_once: bool
) -> None:
    with standing_in(StandIn(refuse=refusal, at_once=at_once)) as host, pytest.raises(kind) as refused:
        send(wire, host)

    assert words in refused.value.message
    assert KEY not in f"{refused.value}{refused.value.next_step}{refused.value.__cause__}"
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("description", "kind", "words"),
    [
        ("Traceback:\n  x\ntorch.OutOfMemoryError: CUDA out of memory.", OutOfMemory, "ran out of memory"),
        ("The actor died unexpectedly before finishing this task.", WorkerLost, "lost the model"),
        ("Error submitting request to model deployment. Please try again later.", WorkerLost, "lost the model"),
        ("ModuleNotFoundError: No module named 'nnterp_mcp'", Unsupported, "versions that do not fit"),
        ("Model could not be deployed: no such repository", Exception, "does not serve this model"),
        ("Traceback:\nZeroDivisionError: division by zero", Internal, "division by zero"),
    ],
)
def test_a_request_that_fails_there(wire: Any, description: str, kind: type[NnterpError], words: str) -> None:
    with standing_in(StandIn(messages=[status("ERROR", description)])) as host, pytest.raises(kind) as failed:
        send(wire, host)

    assert words in str(failed.value)


@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_connection_that_ends_in_the_middle(wire: Any, then: str) -> None:
    service = StandIn(messages=[status("RUNNING")], then=then)
    with standing_in(service) as host, pytest.raises(WorkerLost, match="closed the connection before it answered"):
        send(wire, host)


def test_a_service_that_says_nothing_leaves_a_call_that_can_be_stopped(wire: Any) -> None:
    until = time.monotonic() + 1

    def check() -> None:
        if time.monotonic() > until:
            raise Cancelled("enough")

    with standing_in(StandIn()) as host, pytest.raises(Cancelled):
        send(wire, host, check)

    assert time.monotonic() - until < 3


def test_a_service_that_takes_connections_and_says_nothing(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnterp_mcp.engine.executors.ndif.client._CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimedOut, match="does not answer in time"):
        send(wire, f"http://127.0.0.1:{listener.getsockname()[1]}")


def test_nobody_listens(wire: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(WorkerLost, match="refuses connections"):
        send(wire, host)


class Trap:
    """What runs code when a pickle of it is read."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle of the service ran code')",)


@pytest.mark.parametrize("inside", [True, False])
def test_a_service_cannot_run_code_here(wire: Any, inside: bool) -> None:
    import io

    import torch

    envelope = io.BytesIO()
    torch.save({"id": Trap(), "status": Trap()}, envelope, pickle_protocol=4)
    message = completed({"found": [Trap()]}) if inside else envelope.getvalue()
    with standing_in(StandIn(messages=[message])) as host, pytest.raises(Unsupported, match="a pickle can run code"):
        send(wire, host)
