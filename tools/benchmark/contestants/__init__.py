"""Who does the jobs: a module `by_…` for each contestant, with a `Contestant` whose methods are the plays.

What is here runs in environments in which our package is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Numbers = list[float]


@dataclass(frozen=True)
class Play:
    """A job, ready to be done again and again.

    Attributes:
        work: What is timed.
        numbers: What it came to, for comparison; untimed.
        after: Puts away what the work left; untimed.
        times: How often one `work` does the job; more than once where a single one is too short to be timed.
    """

    work: Callable[[], Any]
    numbers: Callable[[Any], Numbers]
    after: Callable[[Any], None] = lambda done: None
    times: int = 1


class Stage:
    """A contestant's process.

    Attributes:
        model_name: What was asked for: the built-in name, a Hub id or a folder.
        folder: The model's files.
        device: The torch device.
        dtype: What the model computes in, by torch's name.
    """

    def __init__(self, model_name: str, folder: str, device: str, dtype: str) -> None:
        self.model_name = model_name
        self.folder = folder
        self.device = device
        self.dtype = dtype

    @property
    def exact(self) -> bool:
        """Texts can be compared token by token: at reduced precision near ties fall one way or the other."""
        return self.dtype == "float32"

    def warm(self) -> None:
        """Loads the model and reads all of its weights once, so that neither counts as a job's."""

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device != "cpu":
            import torch

            torch.accelerator.synchronize()

    def processes(self) -> list[int]:
        """The processes whose memory counts."""
        return [os.getpid()]

    def close(self) -> None:
        """Ends what was started."""
