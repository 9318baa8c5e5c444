"""The outcome of a check, and the differences that count as equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.model.memory import says_nothing

Run = TypeVar("Run")

TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to their largest magnitude, that counts as equal."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: The capability that it decides: `names`, `lens`, `batch`, `causal`, `attention`, `attention_edit`; and
            `lengths`, where the configuration names some.
        passed: True if the capability works.
        detail: The measured numbers, or the reason of the failure.
    """

    name: str
    passed: bool
    detail: str


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors."""
    return float((one.detach().float() - other.detach().float()).abs().max())


def tolerance(logits: Tensor) -> float:
    """The largest difference from these logits that counts as equal."""
    return TOLERANCES.get(logits.dtype, 1e-1) * max(float(logits.float().abs().max()), 1.0)


def run_or_reason(run: Callable[[], Run]) -> Run | str:
    """The result of a pass, or the reason why it does not run.

    Raises:
        Exception: The call was stopped, or memory ran out, which says nothing about the model.
    """
    try:
        return run()
    except Exception as error:  # whatever else the modelling code raises is the reason
        if says_nothing(error):
            raise
        if isinstance(error, NnterpError):
            return error.message
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
