"""The messages between the server and a worker: one JSON object a line, over the worker's stdin and stdout."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from nnterp_mcp.errors import BY_CODE, Internal, NnterpError
from nnterp_mcp.settings import Settings


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(_Message):
    """The first message to a worker: what the server decided."""

    kind: Literal["start"] = "start"
    handle: str
    settings: Settings


class Call(_Message):
    """Runs a tool. A worker runs its calls one after another, in the order in which they come."""

    kind: Literal["call"] = "call"
    id: int
    tool: str
    params: dict[str, Any]


class Cancel(_Message):
    """Stops a call before its next batch, or before it starts."""

    kind: Literal["cancel"] = "cancel"
    id: int


class Progress(_Message):
    """How far a call is; `total` is None while that is not known."""

    kind: Literal["progress"] = "progress"
    id: int
    done: float
    total: float | None = None
    message: str = ""


class Reply(_Message):
    """A finished call with its result, as the tool's `Result` dumps it."""

    kind: Literal["reply"] = "reply"
    id: int
    result: dict[str, Any]
    device_memory: int | None = None
    """Bytes that the model and its work hold on the accelerator; None without one."""


class Failure(_Message):
    """A call that raised; the error as data."""

    kind: Literal["failure"] = "failure"
    id: int
    code: str
    message: str
    next_step: str = ""

    @classmethod
    def of(cls, id: int, error: NnterpError) -> Failure:  # noqa: A002 - the field's name
        """The failure that carries an error."""
        return cls(id=id, code=error.code, message=error.message, next_step=error.next_step)

    def error(self) -> NnterpError:
        """The error that the failure carries."""
        return BY_CODE.get(self.code, Internal)(self.message, self.next_step)


ToWorker = Start | Call | Cancel
FromWorker = Progress | Reply | Failure

to_worker: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
from_worker: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])


def encode(message: ToWorker | FromWorker) -> bytes:
    """A message as one line."""
    return message.model_dump_json().encode() + b"\n"
