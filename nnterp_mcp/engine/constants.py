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


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device and in the dtype of another one; copied once for each."""
    if tensor.device == other.device and tensor.dtype == other.dtype:
        return tensor
    if tensor not in _MOVED:
        _MOVED[tensor] = {}
    copies: dict[tuple[torch.device, torch.dtype], Tensor] = _MOVED[tensor]
    place = (other.device, other.dtype)
    if place not in copies:
        with torch.inference_mode(False):
            copies[place] = tensor.detach().to(other.device, other.dtype)
    return copies[place]
