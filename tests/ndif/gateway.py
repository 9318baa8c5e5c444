"""A gateway before an NDIF service that counts what passes, and can fail in the ways in which networks do."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field

PASS = "pass"
"""What comes is handed on."""
REFUSE = "refuse"
"""Connections are refused."""
RESET = "reset"
"""Connections are taken, and reset with the first bytes that come back."""
SLOW = "slow"
"""Connections are taken, and nothing comes back."""


@dataclass
class Gateway:
    """A listening socket that hands connections on.

    Attributes:
        target: The service's port on the loopback address.
        port: Where it listens.
        mode: How it treats connections and what comes back on those that are open.
        reply: An HTTP status and a JSON body that answer every request in the service's place; None for the service.
        received: Bytes that came back.
        sent: Bytes that were sent.
    """

    target: int
    port: int = 0
    mode: str = PASS
    reply: tuple[int, dict[str, object]] | None = None
    received: int = 0
    sent: int = 0
    _listener: socket.socket | None = None
    _open: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What a client is told."""
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Begins to take connections."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def fail(self, mode: str) -> None:
        """Changes how connections fare; those that are open are reset where that is the mode."""
        self.mode = mode
        if mode == REFUSE:
            self.close()
        elif self._listener is None:
            self.listen()
        if mode in (REFUSE, RESET):
            self.drop()

    def drop(self) -> None:
        """Resets every open connection."""
        while self._open:
            _reset(self._open.pop())

    def close(self) -> None:
        """Takes no more connections."""
        if self._listener is not None:
            with contextlib.suppress(OSError):  # wakes who waits in accept
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.reply is not None:
            self._answer(client, *self.reply)
            return
        service = socket.create_connection(("127.0.0.1", self.target))
        self._open += [client, service]
        threading.Thread(target=self._copy, args=(service, client, True), daemon=True).start()
        self._copy(client, service, False)

    def _copy(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if back and self.mode == RESET:
                    _reset(target)
                    return
                while back and self.mode == SLOW:
                    time.sleep(0.05)
                if back:
                    self.received += len(data)
                else:
                    self.sent += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, status: int, body: dict[str, object]) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(2)
            client.recv(1 << 16)
            content = json.dumps(body).encode()
            head = f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            client.sendall(f"{head}Connection: close\r\n\r\n".encode() + content)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):  # wakes who reads from it, without a word to the other end
            connection.shutdown(socket.SHUT_RD)
        connection.close()


@contextlib.contextmanager
def gateway(target: int) -> Generator[Gateway]:
    """A gateway that is closed at the end."""
    made = Gateway(target)
    made.listen()
    try:
        yield made
    finally:
        made.close()
        made.drop()
