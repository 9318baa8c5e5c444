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
    from nnterp_mcp.interventions.patchscope import (
        TargetPrompt,
        TargetPromptBatch,
        it_repeat_prompt,
        patch_object_attn_lens,
        patchscope_generate,
        patchscope_lens,
        repeat_prompt,
    )
    from nnterp_mcp.interventions.prompts import Prompt, get_first_tokens, run_prompts
    from nnterp_mcp.interventions.steering import steer
    from nnterp_mcp.laboratory import Laboratory
    from nnterp_mcp.model.check import Check, check_model
    from nnterp_mcp.model.modules import ModuleAccessor
    from nnterp_mcp.model.rename import RenameConfig, get_rename_dict
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.model.thorough import Report, check_thoroughly

_NAMES = {
    "interventions.activations": (
        "collect_token_activations_batched",
        "compute_next_token_probs",
        "get_token_activations",
    ),
    "interventions.lens": ("logit_lens",),
    "interventions.patchscope": (
        "TargetPrompt",
        "TargetPromptBatch",
        "it_repeat_prompt",
        "patch_object_attn_lens",
        "patchscope_generate",
        "patchscope_lens",
        "repeat_prompt",
    ),
    "interventions.prompts": ("Prompt", "get_first_tokens", "run_prompts"),
    "interventions.steering": ("steer",),
    "laboratory": ("Laboratory",),
    "model.check": ("Check", "check_model"),
    "model.modules": ("ModuleAccessor",),
    "model.rename": ("RenameConfig", "get_rename_dict"),
    "model.standardized": ("StandardizedTransformer",),
    "model.thorough": ("Report", "check_thoroughly"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "Check",
    "Laboratory",
    "ModuleAccessor",
    "Prompt",
    "RenameConfig",
    "Report",
    "StandardizedTransformer",
    "TargetPrompt",
    "TargetPromptBatch",
    "__version__",
    "check_model",
    "check_thoroughly",
    "collect_token_activations_batched",
    "compute_next_token_probs",
    "get_first_tokens",
    "get_rename_dict",
    "get_token_activations",
    "it_repeat_prompt",
    "logit_lens",
    "patch_object_attn_lens",
    "patchscope_generate",
    "patchscope_lens",
    "repeat_prompt",
    "run_prompts",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
