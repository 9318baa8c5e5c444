"""Linear maps taken from modules, whatever they call their weights and however they store them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def pull_back(
    module: nn.Module, states: Float[Tensor, "row in"], direction: Float[Tensor, "row out"]
) -> Float[Tensor, "row in"]:
    """What each input of a linear map counts along a direction of its outputs: the transposed map; in float64.

    It is asked of autograd, which has it for `Linear`, GPT-2's transposed weights and quantized ones alike.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = _as_input(module, states).requires_grad_()
        outputs = module(inputs)
        (found,) = torch.autograd.grad(outputs, inputs, direction.clone().to(outputs)[:, None])
    return found[:, 0].double()


@torch.no_grad()
def offset(module: nn.Module, states: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
    """What an affine map returns for zeros, once for each row; in float64."""
    return module(torch.zeros_like(_as_input(module, states)))[:, 0].double()


def _as_input(module: nn.Module, states: Float[Tensor, "row in"]) -> Float[Tensor, "row 1 in"]:
    weight = next((weight for weight in module.parameters() if weight.is_floating_point()), states)
    return states.detach().clone().to(weight)[:, None]
