"""A randomly initialised model of a loaded one's architecture: a control for what training has put into the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.memory import free
from nnterp_mcp.model.standardized import StandardizedTransformer


def make_untrained(model: StandardizedTransformer, seed: int = 0) -> StandardizedTransformer:
    """A model with the configuration, dtype and device of another, and weights as its class draws them.

    Args:
        model: The other.
        seed: Equal seeds give equal weights. The global random state is left alone.

    Raises:
        Unsupported: The weights are quantized or not on one device, or a second set of them does not fit the memory.
    """
    module: Any = model.module
    if getattr(module.config, "quantization_config", None) is not None:
        raise Unsupported(f"the weights of {model.name} are quantized: none are drawn like them.")
    if len({weight.device for weight in module.parameters()}) > 1:
        raise Unsupported(f"the weights of {model.name} are on several devices.")
    needed = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    if needed > free(model.device):
        raise Unsupported(f"a second {model.name} does not fit the memory.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(module)._from_config(copy.deepcopy(module.config), dtype=module.dtype)
    drawn = drawn.to(model.device).eval().requires_grad_(False)
    return StandardizedTransformer(
        drawn, tokenizer=model.tokenizer, name=f"{model.name}, untrained", check_renaming=False
    )
