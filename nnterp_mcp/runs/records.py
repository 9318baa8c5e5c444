"""What is known of a run: everything that is needed to trust its numbers, and to get them again."""

from __future__ import annotations

import os
import platform
import re
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from nnterp_mcp.errors import BY_CODE, Internal, InvalidRequest, NnterpError
from nnterp_mcp.request.arguments import shown

RunState = Literal["running", "done", "failed", "cancelled", "interrupted"]
"""`interrupted` is never written: it is a run that says `running` while the process that ran it is gone."""

_RUN_ID = re.compile(r"[a-z_]{1,40}-[a-z2-7]{6}")


def is_run_id(name: str) -> bool:
    """Whether a name has the form of a run's id."""
    return _RUN_ID.fullmatch(name) is not None


def check_run_id(run_id: str) -> str:
    """A run's id, which is never a path.

    Raises:
        InvalidRequest: It has not the form of one.
    """
    if not is_run_id(run_id):
        raise InvalidRequest(
            f"a run id looks like 'logit_lens-k3f7qa', so not {shown(run_id)}.", "session lists the latest runs."
        )
    return run_id


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunError(_Part):
    """Why a run did not finish, as its caller was told."""

    code: str
    message: str
    next_step: str = ""

    @classmethod
    def of(cls, error: NnterpError) -> RunError:
        """The error as data."""
        return cls(code=error.code, message=error.message, next_step=error.next_step)

    def error(self) -> NnterpError:
        """The error that this was."""
        return BY_CODE.get(self.code, Internal)(self.message, self.next_step)


class Owner(_Part):
    """The server that a run belongs to while it runs; a process id alone is used again by others."""

    host: str
    pid: int
    since: float

    @classmethod
    def this(cls) -> Owner:
        """The process that asks."""
        return cls(host=platform.node(), pid=os.getpid(), since=psutil.Process().create_time())

    def lives(self) -> bool:
        """Whether it may still be at work; of another machine's nothing is known, so yes."""
        if self.host != platform.node():
            return True
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - self.since) < 1.0
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True


class FileCard(_Part):
    """A file of the model: its size, and its SHA-256 unless that was not known yet when the run ended."""

    bytes: int
    sha256: str | None


class RunEnvironment(_Part):
    """What computed the numbers.

    Attributes:
        versions: Of Python and of the packages that matter.
        platform: The operating system and the processor.
        device: Where the model was.
        device_name: What that is.
        dtype: How its weights were held.
        attention: How attention was computed.
        architecture: The model's class.
        source: Where its weights came from.
        revision: The Hub's commit, None for local files.
        fingerprint: A hash over some of its weights, in memory.
        files: The files that it was read from.
        threads: How many threads computed, on a CPU.
    """

    versions: dict[str, str]
    platform: str
    device: str
    device_name: str
    dtype: str
    attention: str
    architecture: str
    source: str
    revision: str | None
    fingerprint: str
    files: dict[str, FileCard]
    threads: int


class ArrayCard(_Part):
    """An array that lies beside a result: its shape, and what stands along each axis."""

    dtype: str
    shape: list[int]
    axes: dict[str, list[int | str]]


class RunRecord(_Part):
    """One run.

    Attributes:
        id: Its id.
        tool: The tool that was called.
        model: The handle of the model.
        request: The parameters of the `load_model` that loaded it.
        params: The call's parameters, whole.
        seed: The one among them, if any.
        state: How far it is.
        partial: The result holds only a part of what was asked for.
        error: Why it did not finish.
        opened: When the call came, in ISO 8601.
        ended: When it ended.
        queue_seconds: How long it waited for the model.
        compute_seconds: How long it ran beside it.
        owner: The server that runs it.
        environment: What computed it.
        arrays: The arrays that lie beside the result.
        result_sha256: Of the result's file, by which a damaged one is told.
    """

    id: str
    tool: str
    model: str
    request: dict[str, Any]
    params: dict[str, Any]
    seed: int | None = None
    state: RunState = "running"
    partial: bool = False
    error: RunError | None = None
    opened: str
    ended: str | None = None
    queue_seconds: float | None = None
    compute_seconds: float | None = None
    owner: Owner
    environment: RunEnvironment | None = None
    arrays: dict[str, ArrayCard] = Field(default_factory=dict)
    result_sha256: str | None = None

    def current(self) -> RunRecord:
        """The record as it is to be understood now: a run whose server is gone was interrupted."""
        if self.state != "running" or self.owner.lives():
            return self
        return self.model_copy(update={"state": "interrupted"})
