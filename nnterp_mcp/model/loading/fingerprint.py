"""A short hash that tells one set of weights from another."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_SAMPLES = 256
"""Entries of each parameter that are hashed."""


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Hashes evenly spaced entries of every parameter, in bfloat16.

    The same checkpoint gives the same hash in float32 and in bfloat16, whatever the device. A fine-tuned model gives
    another one, unless none of the entries moved by as much as bfloat16 can tell. Quantized weights count as others.

    Args:
        model: The model. Parameters that are offloaded and hold no data do not count.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(repr(tuple(parameter.shape)).encode())
        if not parameter.is_meta:
            digest.update(_sample(parameter))
    return digest.hexdigest()[:16]


def _sample(parameter: Tensor) -> bytes:
    flat = parameter.detach().reshape(-1)
    stride = max(1, flat.numel() // _SAMPLES)
    part = flat[::stride][:_SAMPLES]
    part = part.to(torch.bfloat16).view(torch.int16) if part.is_floating_point() else part
    return part.cpu().numpy().tobytes()
