"""Indices and vectors that every pass uses again, kept where the model computes.

A copy from the host makes an accelerator wait, and cannot be part of a captured graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


def indices(numbers: Sequence[int], device: torch.device) -> Int[Tensor, " number"]:
    """Numbers as a tensor to index with."""
    return _indices(tuple(numbers), device)


@lru_cache(maxsize=1024)
def _indices(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not be kept for a backward pass
        return torch.tensor(numbers, dtype=torch.long, device=device)


_MOVED = WeakTensorKeyDictionary()


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, copied there once."""
    if tensor.device == device:
        return tensor
    if tensor not in _MOVED:
        _MOVED[tensor] = {}
    copies: dict[torch.device, Tensor] = _MOVED[tensor]
    if device not in copies:
        with torch.inference_mode(False):
            copies[device] = tensor.detach().to(device)
    return copies[device]
