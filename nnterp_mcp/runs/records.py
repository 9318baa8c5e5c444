"""The record of a run: everything needed to trust its numbers and to reproduce them."""

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

LATEST = ("session lists the latest runs.", "nnterp-mcp runs lists the latest runs.")
"""The next step where there is no such run: for agents, and at the command line."""

_RUN_ID = re.compile(r"[a-z_]{1,40}-[a-z2-7]{6}")


def is_run_id(name: str) -> bool:
    """True if a name has the form of a run's id."""
    return _RUN_ID.fullmatch(name) is not None


def check_run_id(run_id: str) -> str:
    """A run's id, which is never a path.

    Raises:
        InvalidRequest: It has not the form of one.
    """
    if not is_run_id(run_id):
        raise InvalidRequest(f"a run id looks like 'logit_lens-k3f7qa', so not {shown(run_id)}.", *LATEST)
    return run_id


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunError(_Part):
    """The error of a run that did not finish, as its caller saw it."""

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
    """The server process of a run; its start time tells it from a later process with the same id."""

    host: str
    pid: int
    since: float

    @classmethod
    def this(cls) -> Owner:
        """The process that asks."""
        return cls(host=platform.node(), pid=os.getpid(), since=psutil.Process().create_time())

    def lives(self) -> bool:
        """True if it may still be running; always true for another machine's."""
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
    """A file of the model: its size, and its SHA-256 unless it was not computed yet when the run ended."""

    bytes: int
    sha256: str | None


class RunEnvironment(_Part):
    """The software, hardware and model that computed the numbers.

    Attributes:
        versions: Of Python and of the packages that matter.
        platform: The operating system and the processor.
        device: The model's device.
        device_name: The device's name.
        dtype: The dtype of the weights.
        attention: The attention implementation.
        architecture: The model's class.
        source: The source of its weights.
        revision: The Hub's commit, None for local files.
        fingerprint: A hash over some of its weights, in memory.
        files: The files that it was read from.
        threads: Number of CPU threads.
        adapter_revision: The Hub's commit of the adapter on it.
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
    adapter_revision: str | None = None


class ArrayCard(_Part):
    """An array of a run: its dtype, shape, and the labels along each axis."""

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
        others: Those of the other models that the call names, by their handles.
        params: The call's parameters, whole.
        seed: The one among them, if any.
        state: Its state when the record was written.
        partial: True if the result is incomplete.
        error: The reason why it did not finish.
        opened: Time of the call, in ISO 8601.
        ended: Time of its end.
        queue_seconds: Seconds of waiting for the model.
        compute_seconds: Seconds of computation.
        owner: The server that runs it.
        environment: The software, hardware and model that computed it.
        arrays: The arrays in its folder.
        result_sha256: Hash of the result's file, to detect damage.
    """

    id: str
    tool: str
    model: str
    request: dict[str, Any]
    others: dict[str, dict[str, Any]] = Field(default_factory=dict)
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
        """The record as of now: a run whose server is gone was interrupted."""
        if self.state != "running" or self.owner.lives():
            return self
        return self.model_copy(update={"state": "interrupted"})
