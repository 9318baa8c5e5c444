"""The contestants' processes, from outside."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .workloads import Workload

TOOLS = Path(__file__).parent.parent


class Failed(Exception):
    """A contestant could not do what it was asked for."""


@dataclass(frozen=True)
class Setting:
    """What all contestants are given.

    Attributes:
        model: The model as it was asked for.
        folder: Its files.
        device: The torch device.
        dtype: What the model computes in.
        threads: Threads of a contestant.
        pythons: The interpreter of each contestant.
    """

    model: str
    folder: str
    device: str
    dtype: str
    threads: int
    pythons: dict[str, str]


class Player:
    """One contestant's process, which does one thing at a time."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name

    def ask(self, do: Literal["numbers", "seconds", "peak"], play: str, work: Workload) -> Any:
        """Has something done, and returns what it came to.

        Raises:
            Failed: It could not be done, or the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "play": play, "work": asdict(work)}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"{self._name} ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer[do]


@contextmanager
def playing(name: str, setting: Setting, log: Path) -> Generator[Player]:
    """Starts a contestant, and ends it."""
    threads = {variable: str(setting.threads) for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [
        setting.pythons[name],
        "-m",
        "benchmark.player",
        name,
        setting.model,
        setting.folder,
        setting.device,
        setting.dtype,
    ]
    with log.open("a") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            cwd=TOOLS,
            env=os.environ | threads | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            yield Player(process, name)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


@contextmanager
def playing_all(names: Sequence[str], setting: Setting, log: Path) -> Generator[dict[str, Player]]:
    """Starts several contestants, and ends them."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(playing(name, setting, log)) for name in names}
