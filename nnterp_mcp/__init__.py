"""nnterp-mcp: an interpretability laboratory for LLM agents.

The library's names are loaded when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nnterp_mcp.interventions.activations import (
        collect_token_activations_batched,
        compute_next_token_probs,
        get_token_activations,
    )
    from nnterp_mcp.interventions.lens import logit_lens
    from nnterp_mcp.interventions.prompts import Prompt, get_first_tokens, run_prompts
    from nnterp_mcp.interventions.steering import steer
    from nnterp_mcp.model.standardized import StandardizedTransformer

_HOMES = {
    "StandardizedTransformer": "model.standardized",
    "collect_token_activations_batched": "interventions.activations",
    "compute_next_token_probs": "interventions.activations",
    "get_token_activations": "interventions.activations",
    "logit_lens": "interventions.lens",
    "Prompt": "interventions.prompts",
    "get_first_tokens": "interventions.prompts",
    "run_prompts": "interventions.prompts",
    "steer": "interventions.steering",
}

__all__ = [
    "Prompt",
    "StandardizedTransformer",
    "__version__",
    "collect_token_activations_batched",
    "compute_next_token_probs",
    "get_first_tokens",
    "get_token_activations",
    "logit_lens",
    "run_prompts",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
