"""Sending a trace to an NDIF service, and waiting for what comes back.

nnsight's own client blocks without end, prints its status, loads what comes back as a pickle, and turns every fault
into one error. This one says where in the queue a request is, can be stopped, loads nothing but tensors and plain
data, and tells faults apart.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import httpx2
import nnsight
import torch
import websocket
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.backend import Backend
from nnsight.tracing.tracer import Tracer, save
from nnsight.tracing.util import push
from pydantic import ValidationError

from nnterp_mcp.engine.executors.ndif.faults import judge_failure, judge_refusal, unreachable
from nnterp_mcp.errors import Unsupported, WorkerLost

for _sent in (
    "nnterp_mcp.engine.executors.ndif.kernels",
    "nnterp_mcp.engine.interpreter",
    "nnterp_mcp.engine.readouts.patterns",
    "nnterp_mcp.engine.readouts.reductions",
):
    nnsight.register(_sent)

_CONNECT = 10.0
"""Seconds within which a service has to take a connection."""

_ANSWER = 60.0
"""Seconds within which it has to answer a request over HTTP."""

_LOOK = 0.2
"""Seconds between two looks at whether the call was stopped."""

_MOST_BYTES = 1 << 30
"""Bytes that may come back for one request."""


@dataclass
class Traffic:
    """Requests and bytes on the connection.

    Attributes:
        requests: How many requests were answered.
        sent: Bytes of them.
        received: Bytes of their results, compressed as they came.
    """

    requests: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class Connection:
    """One model of one NDIF service.

    Attributes:
        host: The service's address.
        name: What errors call the model.
        model: nnsight's wrapper of the model, on meta weights.
        key: The service's name for the model.
        secret: The API key; never shown.
        check: Raises what the call in hand is to end with.
        say: Told what the service says of the request in hand.
        traffic: What went over the wire since it was last set.
    """

    host: str
    name: str
    model: Any
    key: str
    secret: str = field(default="", repr=False)
    check: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda message: None
    traffic: Traffic = field(default_factory=Traffic)

    def backend(self) -> Backend:
        """The nnsight backend that runs a trace or a session on the service."""
        return _Request(self)

    def environment(self) -> dict[str, Any]:
        """The versions of what the service computes with; nothing where it does not tell.

        Raises:
            WorkerLost: It cannot be reached.
            Forbidden: It refuses the key.
            Unsupported: It takes another client.
        """
        try:
            timeout = httpx2.Timeout(_CONNECT, read=_ANSWER)
            answer = httpx2.get(f"{self.host}/env", headers=self.headers, timeout=timeout)
        except httpx2.HTTPError as error:
            raise unreachable(self.host, error) from error
        if answer.status_code == 404:
            return {}
        judge_refusal(self.host, answer)
        return answer.json()

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        own = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        return own | ({"ndif-api-key": self.secret} if self.secret else {})


class _Request(Backend):
    """One trace on its way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, tracer: Tracer) -> None:
        self._connection.check()
        blob = RequestModel.serialize(tracer, compress=True)
        values = self._exchange(blob)
        for value in values.values():
            save(value)
        push(tracer.info.frame, values)  # pyright: ignore[reportOptionalMemberAccess]

    def _exchange(self, blob: bytes) -> dict[str, Any]:
        connection = self._connection
        with self._subscription() as socket:
            envelope = RequestModel(
                model_key=connection.key,
                session_id=json.loads(self._receive(socket))["session_id"],
                compress=True,
                env=connection.model._remoteable_get_env(),
            )
            self._post(envelope, blob)
            connection.traffic.sent += len(blob)
            while True:
                with _plain(connection.host):
                    response = _parse(self._receive(socket))
                if response.status == Status.ERROR:
                    raise judge_failure(connection.host, connection.name, response.description)
                if response.status == Status.COMPLETED:
                    break
                connection.say(_worded(response))
        content = self._content(response.data)
        connection.traffic.requests += 1
        connection.traffic.received += len(content)
        with _plain(connection.host):
            return _load(zstandard.ZstdDecompressor().decompress(content, max_output_size=_MOST_BYTES))

    @contextmanager
    def _subscription(self) -> Generator[websocket.WebSocket]:
        """A socket on which the service tells how the request fares."""
        connection = self._connection
        scheme, _, rest = connection.host.partition("://")
        try:
            socket = websocket.create_connection(
                f"{'wss' if scheme == 'https' else 'ws'}://{rest}/subscribe",
                timeout=_CONNECT,
                header=connection.headers,
            )
        except (websocket.WebSocketException, OSError) as error:
            # Without its cause, which may quote the key.
            raise unreachable(connection.host, error) from None
        socket.settimeout(_LOOK)
        try:
            yield socket
        finally:
            socket.close(timeout=1)

    def _receive(self, socket: websocket.WebSocket) -> str | bytes:
        """The next message; until there is one, the call can be stopped."""
        while True:
            self._connection.check()
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                continue
            except (websocket.WebSocketException, OSError) as error:
                raise _closed(self._connection.host) from error
            if not message:
                raise _closed(self._connection.host)
            return message

    def _post(self, envelope: RequestModel, blob: bytes) -> None:
        connection = self._connection
        try:
            answer = httpx2.post(
                f"{connection.host}/request",
                data={"data": envelope.metadata()},
                files={"blob": ("request", blob, "application/octet-stream")},
                headers=connection.headers,
                timeout=httpx2.Timeout(_CONNECT, read=_ANSWER, write=600),
            )
        except httpx2.HTTPError as error:
            raise unreachable(connection.host, error) from error
        judge_refusal(connection.host, answer)

    def _content(self, data: Any) -> bytes:
        """The result: what came with the last message, or is to be fetched from where that says."""
        if isinstance(data, bytes | bytearray):
            return bytes(data)
        parts = bytearray()
        try:
            with httpx2.stream("GET", str(data), timeout=httpx2.Timeout(_CONNECT, read=_ANSWER)) as answer:
                answer.raise_for_status()
                for part in answer.iter_bytes(1 << 20):
                    self._connection.check()
                    parts += part
                    if len(parts) > _MOST_BYTES:
                        raise WorkerLost(f"NDIF at {self._connection.host} sent more than {_MOST_BYTES:,} bytes")
        except httpx2.HTTPError as error:
            raise unreachable(self._connection.host, error) from error
        return bytes(parts)


@contextmanager
def _plain(host: str) -> Generator[None]:
    """Turns what an answer that cannot be read raises into our error."""
    try:
        yield
    except (pickle.UnpicklingError, zstandard.ZstdError, ValidationError, EOFError) as error:
        raise Unsupported(
            f"NDIF at {host} answered what is not read: only tensors and plain data are, for a pickle can run code",
            "See whether the address is that of an NDIF service that fits this nnsight.",
        ) from error


def _closed(host: str) -> WorkerLost:
    return WorkerLost(
        f"NDIF at {host} closed the connection before it answered: it, or what deploys the model there, was restarted",
        "Call again; the handle stays valid.",
    )


def _parse(message: str | bytes) -> ResponseModel:
    if isinstance(message, str):
        return ResponseModel.model_validate_json(message)
    return ResponseModel(**torch.load(io.BytesIO(message), weights_only=False, pickle_module=_Envelopes))


class _EnvelopeReader(pickle.Unpickler):
    """Reads an answer's envelope, which names no class but `Status`; any other could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (Status.__module__, Status.__name__):
            return Status
        raise pickle.UnpicklingError(f"an answer of NDIF names {module}.{name}")


class _Envelopes:
    """The interface that torch asks of a module that reads pickles."""

    Unpickler = _EnvelopeReader


def _load(content: bytes) -> dict[str, Any]:
    """Tensors and plain data; a pickle of anything else is refused likewise."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _worded(response: ResponseModel) -> str:
    said = " ".join(response.description.split())[:200]
    return f"NDIF: {response.status.value.lower()}" + (f", {said}" if said else "")
