"""nnterp 1.3's functions on models, for code that is ported by changing an import.

They take a `StandardizedTransformer`, or any nnsight model of a Hugging Face causal LM. Functions that read or assign
hidden states work inside a trace, as in nnterp; functions that run passes run them on the same weights under standard
names, wrapped once (`nnterp_mcp.model.loading.adoption`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from nnsight.intervention.envoy import Envoy
from torch import Tensor

from nnterp_mcp.engine.readouts.targets import get_first_tokens
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.target_prompts import TargetPrompt, it_repeat_prompt, repeat_prompt
from nnterp_mcp.model import trace_edits as edits
from nnterp_mcp.model import unembedding as vocabulary
from nnterp_mcp.model.accessors import ModuleList, StateList
from nnterp_mcp.model.loading.adoption import anatomy_of, named
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.modules import ModuleAccessor
from nnterp_mcp.model.structure.rename import AttnProbFunction, RenameConfig, get_rename_dict
from nnterp_mcp.nnterp.activations import (
    collect_token_activations_batched,
    compute_next_token_probs,
    get_layer_output,
    get_token_activations,
)
from nnterp_mcp.nnterp.lens import logit_lens
from nnterp_mcp.nnterp.patchscope import TargetPromptBatch, patch_object_attn_lens, patchscope_generate, patchscope_lens
from nnterp_mcp.nnterp.prompts import Prompt, next_token_probs_unsqueeze, run_prompts
from nnterp_mcp.nnterp.steering import steer

States = Float[Tensor, "batch position hidden"]
GetModuleOutput = Callable[[Any, int], Tensor]
"""nnterp's name for what reads a module's output of one layer inside a trace."""


def get_embed_tokens(model: Any) -> Envoy:
    """The token embedding."""
    return named(model).envoy(anatomy_of(model).embed_tokens)


def get_layers(model: Any) -> Envoy:
    """The list of layers."""
    return named(model).envoy(anatomy_of(model).layers_module)


def get_num_layers(nn_model: Any) -> int:
    """Number of layers."""
    return anatomy_of(nn_model).num_layers


def get_num_attention_heads(
    model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None
) -> int | None:
    """Number of attention heads of a layer.

    Args:
        model: A model of nnsight's or transformers'.
        raise_error: Raise where there is none; None otherwise.
        rename_config: May hold the number.

    Raises:
        InvalidRequest: No layer has attention.
    """
    known = None if rename_config is None else rename_config.attn_head_config_key
    found = known if isinstance(known, int) else anatomy_of(model, rename_config).num_heads
    if not found and raise_error:
        raise InvalidRequest("this model has no attention heads: no layer of it has attention.")
    return found or None


def get_hidden_size(model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None) -> int:
    """Width of the residual stream, of a model of nnsight's or transformers'."""
    known = None if rename_config is None else rename_config.hidden_size_config_key
    return known if isinstance(known, int) else anatomy_of(model, rename_config).hidden_size


def get_vocab_size(model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None) -> int:
    """Number of logits at each position, of a model of nnsight's or transformers'."""
    known = None if rename_config is None else rename_config.vocab_size_config_key
    return known if isinstance(known, int) else anatomy_of(model, rename_config).vocab_size


def get_ignores(model: Any, rename_config: RenameConfig | None = None) -> list[str]:
    """Which of `attention` and `mlp` no layer has as a module, in a model of nnsight's or transformers'."""
    anatomy = anatomy_of(model, rename_config)
    ignored = {"mlp": all(layer.mlp is None for layer in anatomy.layers), "attention": not anatomy.attention_layers}
    if rename_config is not None:
        ignored["mlp"] |= bool(rename_config.ignore_mlp)
        ignored["attention"] |= bool(rename_config.ignore_attn)
    return [part for part, missing in ignored.items() if missing]


def get_layer(nn_model: Any, layer: int) -> Envoy:
    """One layer."""
    return ModuleList(named(nn_model), "block")[layer]


def get_layer_input(nn_model: Any, layer: int) -> States:
    """The residual stream before a layer."""
    return StateList(named(nn_model), "block", "input")[layer]


def set_layer_output(nn_model: Any, layer: int, tensor: States) -> None:
    """Replace the residual stream after a layer."""
    StateList(named(nn_model), "block", "output")[layer] = tensor


def get_attention(nn_model: Any, layer: int) -> Envoy:
    """A layer's attention module."""
    return ModuleList(named(nn_model), "attention")[layer]


def get_attention_output(nn_model: Any, layer: int) -> States:
    """The output of a layer's attention module, before a norm or multiplier that may follow it."""
    return StateList(named(nn_model), "attention_raw", "output")[layer]


def get_mlp(nn_model: Any, layer: int) -> Envoy:
    """A layer's MLP module."""
    return ModuleList(named(nn_model), "mlp")[layer]


def get_mlp_output(nn_model: Any, layer: int) -> States:
    """The output of a layer's MLP module, before a norm or multiplier that may follow it."""
    return StateList(named(nn_model), "mlp_raw", "output")[layer]


def get_logits(nn_model: Any) -> Float[Tensor, "batch position vocabulary"]:
    """The model's logits."""
    return nn_model.output.logits


def get_next_token_probs(nn_model: Any) -> Float[Tensor, "batch vocabulary"]:
    """Probabilities of the next token of each row."""
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.next_token_probs
    return get_logits(nn_model)[:, -1].softmax(-1)


def get_unembed_norm(nn_model: Any) -> Envoy:
    """The norm between the last layer and the head."""
    site = anatomy_of(nn_model).ln_final
    if site is None:
        raise InvalidRequest("this model has no norm between its last layer and its head.")
    return named(nn_model).envoy(site)


def get_unembed(nn_model: Any) -> Envoy:
    """The module from hidden states to logits."""
    site = anatomy_of(nn_model).lm_head
    if site is None:
        raise InvalidRequest("this model's head is not a module of its own.")
    return named(nn_model).envoy(site)


def project_on_vocab(nn_model: Any, h: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocabulary"]:
    """The logits for hidden states after the last layer; exact."""
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.project_on_vocab(h)
    with StandardizedTransformer.standing_down(nn_model):
        return vocabulary.unembed(nn_model._module, anatomy_of(nn_model), h, type(nn_model._module).__name__)


def skip_layer(nn_model: Any, layer: int, skip_with: States | None = None) -> None:
    """Leave out one layer."""
    skip_layers(nn_model, layer, layer, skip_with)


def skip_layers(nn_model: Any, start_layer: int, end_layer: int, skip_with: States | None = None) -> None:
    """Leave out layers from the first to the last, inclusive."""
    edits.leave_out_layers(named(nn_model), start_layer, end_layer, skip_with)


collect_last_token_activations_session = collect_token_activations_batched
"""Locally, a session saves nothing."""

RenamingError = Unsupported
"""nnterp's name for the error of a part that an architecture lacks, or of attention that is not formed."""

TokenizationError = InvalidRequest
"""nnterp's name for the error of a target that has no token."""

__all__ = [
    "AttnProbFunction",
    "GetModuleOutput",
    "ModuleAccessor",
    "Prompt",
    "RenameConfig",
    "RenamingError",
    "StandardizedTransformer",
    "TargetPrompt",
    "TargetPromptBatch",
    "TokenizationError",
    "collect_last_token_activations_session",
    "collect_token_activations_batched",
    "compute_next_token_probs",
    "get_attention",
    "get_attention_output",
    "get_embed_tokens",
    "get_first_tokens",
    "get_hidden_size",
    "get_ignores",
    "get_layer",
    "get_layer_input",
    "get_layer_output",
    "get_layers",
    "get_logits",
    "get_mlp",
    "get_mlp_output",
    "get_next_token_probs",
    "get_num_attention_heads",
    "get_num_layers",
    "get_rename_dict",
    "get_token_activations",
    "get_unembed",
    "get_unembed_norm",
    "get_vocab_size",
    "it_repeat_prompt",
    "logit_lens",
    "next_token_probs_unsqueeze",
    "patch_object_attn_lens",
    "patchscope_generate",
    "patchscope_lens",
    "project_on_vocab",
    "repeat_prompt",
    "run_prompts",
    "set_layer_output",
    "skip_layer",
    "skip_layers",
    "steer",
]
