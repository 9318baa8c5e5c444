"""The messages between the server and a worker: one JSON object a line, over the worker's stdin and stdout."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from nnterp_mcp.runs.records import RunError
from nnterp_mcp.settings import Settings


class _Message(BaseModel):
    # Both ends are ours, and a number that is not finite arrives as what it is.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Start(_Message):
    """The first message to a worker: its handle and the server's settings."""

    kind: Literal["start"] = "start"
    handle: str
    settings: Settings


class Recorded(_Message):
    """The run of a call, and the seconds it waited in the queue."""

    run: str
    queued: float
    others: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The parameters of `load_model` of the other models that the call names, by handle."""


class Call(_Message):
    """Runs a tool. A worker runs its calls one after another, in the order in which they come."""

    kind: Literal["call"] = "call"
    id: int
    handle: str = ""
    """The model that shares the weights of the worker's own; empty for that itself."""
    tool: str
    params: dict[str, Any]
    recorded: Recorded | None = None
    """The run that records the call, None for a call that is none."""


class Cancel(_Message):
    """Stops a call before its next batch, or before it starts; with the error that its caller is to see."""

    kind: Literal["cancel"] = "cancel"
    id: int
    error: RunError


class Resume(_Message):
    """Lets a call continue that gave way to others."""

    kind: Literal["resume"] = "resume"
    id: int


class Ping(_Message):
    """Checks that the process responds; answered at once, even during a computation."""

    kind: Literal["ping"] = "ping"


class Pong(_Message):
    """The answer to a `Ping`."""

    kind: Literal["pong"] = "pong"


class Progress(_Message):
    """How far a call is; `total` is None while that is not known."""

    kind: Literal["progress"] = "progress"
    id: int
    done: float
    total: float | None = None
    message: str = ""


class Pause(_Message):
    """A call has finished a group of its items and gives way to calls that wait, until it is resumed."""

    kind: Literal["pause"] = "pause"
    id: int


class _Ended(_Message):
    """The end of a call."""

    id: int
    held: dict[str, int] | None = None
    """Bytes of weights of other models that the process has read to compare with, by handle; None if not known."""


class Reply(_Ended):
    """A finished call.

    A call that is recorded as a run replies with its answer, since its result is in the record and may be large; any
    other call replies with its result.
    """

    kind: Literal["reply"] = "reply"
    result: dict[str, Any]
    device_memory: int | None = None
    """Bytes allocated on the accelerator; None without one."""
    uncaptured: dict[str, str] = Field(default_factory=dict)
    """Parts of the model that could be replayed as graphs and are not, each with the reason."""


class Failure(_Ended):
    """A call that raised."""

    kind: Literal["failure"] = "failure"
    error: RunError


ToWorker = Start | Call | Cancel | Resume | Ping
FromWorker = Progress | Pause | Reply | Failure | Pong

to_worker: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
from_worker: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])


def to_line(message: ToWorker | FromWorker) -> bytes:
    """A message as one line."""
    return message.model_dump_json().encode() + b"\n"
