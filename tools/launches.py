"""Counts what the host asks of the device: `python -m tools.launches`.

A pass over a few tokens takes the time of its launches, not of its arithmetic. For a lens of one prompt and for one
decode step this counts the operations that the host launches, those for whose result it waits (synchronisations: a copy
to the host, or an output that depends on values), and the bytes that they read and write. A replayed graph is one
launch, which is not counted. On a CPU, which copies nothing, reading a number that is there counts as a wait too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnterp_mcp import Laboratory

_PROMPT = "The capital of France is"
_TOKENS = 16
_WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass
class Launches:
    """Operations that compute something, those that the host waits for, and the bytes of their tensors."""

    count: int = 0
    waits: int = 0
    bytes: int = 0

    def __sub__(self, other: Launches) -> Launches:
        return Launches(self.count - other.count, self.waits - other.waits, self.bytes - other.bytes)

    def __str__(self) -> str:
        return f"{self.count:,} launches, {self.waits} synchronisations, {self.bytes / 1e6:,.0f} MB read and written"


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Launches()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.found.count += 1
            self.found.waits += _waits(func, args, made)
            self.found.bytes += sum(map(_size, (*args, *(kwargs or {}).values(), made)))
        return made


def _waits(func: Any, args: Any, made: Any) -> bool:
    moved = func._overloadpacket is torch.ops.aten._to_copy and made.device.type == "cpu" != args[0].device.type
    return moved or any(tag in func.tags for tag in _WAITS)


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def count(work: Callable[[], object]) -> Launches:
    """Counts the launches of some work, after a first run, so that one-time setup is not counted."""
    work()
    with _Counting() as counting:
        work()
    return counting.found


def main() -> int:
    """Prints both counts."""
    parser = argparse.ArgumentParser(prog="tools.launches", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    laboratory = Laboratory(given.model, device=given.device, dtype=given.dtype)

    def generate(tokens: int) -> Launches:
        return count(lambda: laboratory.generate(prompts=_PROMPT, max_new_tokens=tokens))

    print(f"lens of one prompt: {count(lambda: laboratory.logit_lens(prompts=_PROMPT))}")
    longer, shorter = generate(_TOKENS + 8), generate(_TOKENS)
    step = longer - shorter
    print(f"decode step: {Launches(step.count // 8, step.waits // 8, step.bytes // 8)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
