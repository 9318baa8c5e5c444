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
    from nnterp_mcp.interventions.attribution_patching import compare_with_patches, estimate_effects
    from nnterp_mcp.interventions.collection import collect, index_rows
    from nnterp_mcp.interventions.corruption import ablate, add_noise, pair_prompts, put_in_force, resample
    from nnterp_mcp.interventions.direct_logit import attribute_directly
    from nnterp_mcp.interventions.gradients import integrate_gradients, multiply_gradients
    from nnterp_mcp.interventions.lens import logit_lens
    from nnterp_mcp.interventions.patching import Patcher, make_grid
    from nnterp_mcp.interventions.patchscope import (
        TargetPrompt,
        TargetPromptBatch,
        it_repeat_prompt,
        patch_object_attn_lens,
        patchscope_generate,
        patchscope_lens,
        repeat_prompt,
    )
    from nnterp_mcp.interventions.path_patching import Receiver
    from nnterp_mcp.interventions.places import Place
    from nnterp_mcp.interventions.plan import plan
    from nnterp_mcp.interventions.probes import deal_folds, make_probe, predict_held_out, probe_direction
    from nnterp_mcp.interventions.prompts import Prompt, get_first_tokens, run_prompts
    from nnterp_mcp.interventions.steering import steer
    from nnterp_mcp.laboratory import Laboratory
    from nnterp_mcp.model.check import Check, check_model
    from nnterp_mcp.model.modules import ModuleAccessor
    from nnterp_mcp.model.prompts import encode_prompts
    from nnterp_mcp.model.rename import RenameConfig, get_rename_dict
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.model.thorough import Report, check_thoroughly
    from nnterp_mcp.operations import parse_operation

_NAMES = {
    "interventions.activations": (
        "collect_token_activations_batched",
        "compute_next_token_probs",
        "get_token_activations",
    ),
    "interventions.attribution_patching": (
        "compare_with_patches",
        "estimate_effects",
    ),
    "interventions.collection": (
        "collect",
        "index_rows",
    ),
    "interventions.corruption": (
        "ablate",
        "add_noise",
        "pair_prompts",
        "put_in_force",
        "resample",
    ),
    "interventions.direct_logit": ("attribute_directly",),
    "interventions.gradients": (
        "integrate_gradients",
        "multiply_gradients",
    ),
    "interventions.lens": ("logit_lens",),
    "interventions.patching": (
        "Patcher",
        "make_grid",
    ),
    "interventions.patchscope": (
        "TargetPrompt",
        "TargetPromptBatch",
        "it_repeat_prompt",
        "patch_object_attn_lens",
        "patchscope_generate",
        "patchscope_lens",
        "repeat_prompt",
    ),
    "interventions.path_patching": ("Receiver",),
    "interventions.places": ("Place",),
    "interventions.plan": ("plan",),
    "interventions.probes": (
        "deal_folds",
        "make_probe",
        "predict_held_out",
        "probe_direction",
    ),
    "interventions.prompts": (
        "Prompt",
        "get_first_tokens",
        "run_prompts",
    ),
    "interventions.steering": ("steer",),
    "laboratory": ("Laboratory",),
    "model.check": (
        "Check",
        "check_model",
    ),
    "model.modules": ("ModuleAccessor",),
    "model.prompts": ("encode_prompts",),
    "model.rename": (
        "RenameConfig",
        "get_rename_dict",
    ),
    "model.standardized": ("StandardizedTransformer",),
    "model.thorough": (
        "Report",
        "check_thoroughly",
    ),
    "operations": ("parse_operation",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "Check",
    "Laboratory",
    "ModuleAccessor",
    "Patcher",
    "Place",
    "Prompt",
    "Receiver",
    "RenameConfig",
    "Report",
    "StandardizedTransformer",
    "TargetPrompt",
    "TargetPromptBatch",
    "__version__",
    "ablate",
    "add_noise",
    "attribute_directly",
    "check_model",
    "check_thoroughly",
    "collect",
    "collect_token_activations_batched",
    "compare_with_patches",
    "compute_next_token_probs",
    "deal_folds",
    "encode_prompts",
    "estimate_effects",
    "get_first_tokens",
    "get_rename_dict",
    "get_token_activations",
    "index_rows",
    "integrate_gradients",
    "it_repeat_prompt",
    "logit_lens",
    "make_grid",
    "make_probe",
    "multiply_gradients",
    "pair_prompts",
    "parse_operation",
    "patch_object_attn_lens",
    "patchscope_generate",
    "patchscope_lens",
    "plan",
    "predict_held_out",
    "probe_direction",
    "put_in_force",
    "repeat_prompt",
    "resample",
    "run_prompts",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
