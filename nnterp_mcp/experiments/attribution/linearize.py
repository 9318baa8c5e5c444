"""Linear maps of modules, however they store their weights, and norms as linear maps with their scale frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SIZE = 1024.0
"""Size of the states on which a norm is tried: far above its epsilon."""
_SMALL = 1e-8
"""Their size where a norm is tried near zero: far below its epsilon."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm of some states, with the scale that each of them has; in float64.

    Attributes:
        gain: The factor of each component: the norm's weight over the state's scale.
        bias: The bias.
        centres: The mean over components is subtracted first (by LayerNorm, not by RMSNorm).
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


def pull_back(
    module: nn.Module, states: Float[Tensor, "row in"], direction: Float[Tensor, "row out"]
) -> Float[Tensor, "row in"]:
    """The product of a direction of outputs with the transposed map, in float64.

    It is asked of autograd, which has it for `Linear`, GPT-2's transposed weights and quantized ones alike.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = _as_input(module, states).requires_grad_()
        outputs = module(inputs)
        (found,) = torch.autograd.grad(outputs, inputs, direction.clone().to(outputs)[:, None])
    return found[:, 0].double()


@torch.no_grad()
def offset(module: nn.Module, states: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
    """The output of an affine map for zeros, once for each row, in float64."""
    return module(torch.zeros_like(_as_input(module, states)))[:, 0].double()


def _as_input(module: nn.Module, states: Float[Tensor, "row in"]) -> Float[Tensor, "row 1 in"]:
    weight = next((weight for weight in module.parameters() if weight.is_floating_point()), states)
    return states.detach().clone().to(weight)[:, None]
