"""nnterp-mcp: an interpretability laboratory for LLM agents.

The library's names are loaded when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nnterp_mcp.engine.hook_points import Place
    from nnterp_mcp.engine.planning.plan import plan
    from nnterp_mcp.engine.readouts.targets import get_first_tokens
    from nnterp_mcp.experiments.activations import collect, index_rows
    from nnterp_mcp.experiments.attribution.direct_logit import attribute_directly
    from nnterp_mcp.experiments.attribution.gradients import integrate_gradients, multiply_gradients
    from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
    from nnterp_mcp.experiments.patching.attribution_patching import compare_with_patches, estimate_effects
    from nnterp_mcp.experiments.patching.corruption import ablate, add_noise, pair_prompts, put_in_force, resample
    from nnterp_mcp.experiments.patching.path_patching import Receiver
    from nnterp_mcp.experiments.probes import deal_folds, make_probe, predict_held_out, probe_boundary
    from nnterp_mcp.experiments.target_prompts import TargetPrompt, it_repeat_prompt, repeat_prompt
    from nnterp_mcp.laboratory import Laboratory
    from nnterp_mcp.model.loading.load_checks import check_model
    from nnterp_mcp.model.loading.verdicts import Check
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.model.structure.modules import ModuleAccessor
    from nnterp_mcp.model.structure.rename import RenameConfig, get_rename_dict
    from nnterp_mcp.model.text.tokenization import encode_prompts
    from nnterp_mcp.nnterp.activations import (
        collect_token_activations_batched,
        compute_next_token_probs,
        get_token_activations,
    )
    from nnterp_mcp.nnterp.lens import logit_lens
    from nnterp_mcp.nnterp.patchscope import (
        TargetPromptBatch,
        patch_object_attn_lens,
        patchscope_generate,
        patchscope_lens,
    )
    from nnterp_mcp.nnterp.prompts import Prompt, run_prompts
    from nnterp_mcp.nnterp.steering import steer
    from nnterp_mcp.request.operations import parse_operation
    from nnterp_mcp.verification.full_checks import Report, check_thoroughly

_NAMES = {
    "engine.hook_points": ("Place",),
    "engine.planning.plan": ("plan",),
    "engine.readouts.targets": ("get_first_tokens",),
    "experiments.activations": (
        "collect",
        "index_rows",
    ),
    "experiments.attribution.direct_logit": ("attribute_directly",),
    "experiments.attribution.gradients": (
        "integrate_gradients",
        "multiply_gradients",
    ),
    "experiments.patching.activation_patching": (
        "Patcher",
        "make_grid",
    ),
    "experiments.patching.attribution_patching": (
        "compare_with_patches",
        "estimate_effects",
    ),
    "experiments.patching.corruption": (
        "ablate",
        "add_noise",
        "pair_prompts",
        "put_in_force",
        "resample",
    ),
    "experiments.patching.path_patching": ("Receiver",),
    "experiments.probes": (
        "deal_folds",
        "make_probe",
        "predict_held_out",
        "probe_boundary",
    ),
    "experiments.target_prompts": (
        "TargetPrompt",
        "it_repeat_prompt",
        "repeat_prompt",
    ),
    "laboratory": ("Laboratory",),
    "model.loading.load_checks": ("check_model",),
    "model.loading.verdicts": ("Check",),
    "model.standardized": ("StandardizedTransformer",),
    "model.structure.modules": ("ModuleAccessor",),
    "model.structure.rename": (
        "RenameConfig",
        "get_rename_dict",
    ),
    "model.text.tokenization": ("encode_prompts",),
    "nnterp.activations": (
        "collect_token_activations_batched",
        "compute_next_token_probs",
        "get_token_activations",
    ),
    "nnterp.lens": ("logit_lens",),
    "nnterp.patchscope": (
        "TargetPromptBatch",
        "patch_object_attn_lens",
        "patchscope_generate",
        "patchscope_lens",
    ),
    "nnterp.prompts": (
        "Prompt",
        "run_prompts",
    ),
    "nnterp.steering": ("steer",),
    "request.operations": ("parse_operation",),
    "verification.full_checks": (
        "Report",
        "check_thoroughly",
    ),
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
    "probe_boundary",
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
