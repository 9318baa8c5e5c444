"""How far memory rises above where it stood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Peak:
    """The peak of resident memory of some processes, above what they held when this was made.

    The kernel keeps the peak itself, so that nothing is missed between two looks; only Linux lets it be set back.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = list(processes)
        for process in self._processes:
            Path(f"/proc/{process}/clear_refs").write_text("5")
        self._before = self._sum("VmRSS")

    @staticmethod
    def can() -> bool:
        """Whether this system can tell."""
        return Path("/proc/self/clear_refs").exists()

    def above(self) -> int:
        """Bytes."""
        return max(0, self._sum("VmHWM") - self._before)

    def _sum(self, field: str) -> int:
        return sum(_field(process, field) for process in self._processes)


def _field(process: int, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{process}/status has no {name}")
