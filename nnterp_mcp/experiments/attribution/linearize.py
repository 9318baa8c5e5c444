"""Norms as the linear maps that they are once their scale is frozen at what it was in a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SIZE = 1024.0
"""How large the states are that a norm is tried on: far above the constant that keeps it from dividing by zero."""
_SMALL = 1e-8
"""How large they are where a norm is tried near zero: far below that constant."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm of some states, with the scale that each of them has; in float64.

    Attributes:
        gain: What each component is multiplied by: the norm's weight over the state's scale.
        bias: What is added.
        centres: Whether the mean over components is taken off first (LayerNorm does, RMSNorm does not).
    """

    gain: Float[Tensor, "row hidden"]
    bias: Float[Tensor, " hidden"]
    centres: bool

    def pull(self, direction: Float[Tensor, "row hidden"]) -> Float[Tensor, "row hidden"]:
        """The direction before the norm whose product with a part is that of `direction` with the normed part."""
        pulled = self.gain * direction
        return pulled - pulled.mean(-1, keepdim=True) if self.centres else pulled


@torch.no_grad()
def freeze_norm(norm: nn.Module, states: Float[Tensor, "row hidden"]) -> FrozenNorm:
    """Takes a norm apart by what it does to a few states, whatever it calls its weights.

    A large state of known scale shows weight and bias; the given states then show their own scales. One that is zero
    shows nothing, and has the scale of one that is small.

    Args:
        norm: An RMSNorm or LayerNorm, of whichever making.
        states: The states whose scales are frozen.
    """
    like = next(norm.parameters(), states)
    width = states.shape[-1]
    signs = torch.ones(width, dtype=torch.float64, device=like.device)
    signs[1::2] = -1

    def run(rows: Tensor) -> Tensor:
        return norm(rows.to(like)[:, None])[:, 0].double()

    plus, minus, shifted = run(torch.stack([_SIZE * signs, -_SIZE * signs, _SIZE * (signs + 0.5)]))
    centres = bool((plus - shifted).abs().max() < 0.02 * (plus - minus).abs().max())
    known = _centred(signs, centres)
    weight = (plus - minus) / 2 / (known / known.square().mean().sqrt())
    bias = (plus + minus) / 2
    if float(bias.abs().max()) <= 1e-6 * float(weight.abs().max()):
        bias = torch.zeros_like(bias)
    small = max(_SMALL, 2 * torch.finfo(like.dtype).smallest_normal) * signs
    given = states.to(like.device).double()
    varied = _centred(given, centres).abs().amax(-1, keepdim=True) > 1e-12 * given.abs().amax(-1, keepdim=True)
    shown = torch.where(varied, given, small)
    weighted = weight * _centred(shown, centres)
    size = weighted.square().sum(-1)
    scale = torch.where(size > 0, ((run(shown) - bias) * weighted).sum(-1) / size, 0)
    return FrozenNorm(weight * scale[:, None], bias, centres)


def _centred(states: Tensor, centres: bool) -> Tensor:
    return states - states.mean(-1, keepdim=True) if centres else states
