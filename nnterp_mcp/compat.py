"""The functions of nnterp 1.3's modules that work on a model, for code that is ported by changing an import.

The functions that are defined here take a `StandardizedTransformer`, or any nnsight model of a Hugging Face causal LM;
what reads or assigns hidden states works inside a trace, as it did there. The others are the library's own, and take a
`StandardizedTransformer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from nnsight.intervention.envoy import Envoy
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
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
from nnterp_mcp.interventions.prompts import Prompt, get_first_tokens, next_token_probs_unsqueeze, run_prompts
from nnterp_mcp.interventions.steering import steer
from nnterp_mcp.model import vocabulary
from nnterp_mcp.model.accessors import Part, assign_output, layer_index, read_output, require_part
from nnterp_mcp.model.anatomy import Anatomy, Site
from nnterp_mcp.model.modules import ModuleAccessor
from nnterp_mcp.model.probe import probe
from nnterp_mcp.model.rename import RenameConfig, get_rename_dict
from nnterp_mcp.model.resolve import resolve
from nnterp_mcp.model.standardized import StandardizedTransformer

States = Float[Tensor, "batch position hidden"]
GetModuleOutput = Callable[[Any, int], Tensor]


def get_embed_tokens(nn_model: Any) -> Envoy:
    """The token embedding."""
    return _envoy(nn_model, _anatomy(nn_model).embed_tokens)


def get_layers(nn_model: Any) -> Envoy:
    """The list of layers."""
    return _envoy(nn_model, _anatomy(nn_model).layers_module)


def get_num_layers(nn_model: Any) -> int:
    """Number of layers."""
    return _anatomy(nn_model).num_layers


def get_num_attention_heads(nn_model: Any, raise_error: bool = True, rename_config: Any = None) -> int:
    """Number of attention heads of a layer."""
    return _anatomy(nn_model).num_heads


def get_hidden_size(nn_model: Any, raise_error: bool = True, rename_config: Any = None) -> int:
    """Width of the residual stream."""
    return _anatomy(nn_model).hidden_size


def get_vocab_size(nn_model: Any, raise_error: bool = True, rename_config: Any = None) -> int:
    """Number of logits at each position."""
    return _anatomy(nn_model).vocab_size


def get_ignores(nn_model: Any, rename_config: RenameConfig | None = None) -> list[str]:
    """Which of `attention` and `mlp` no layer has as a module."""
    layers = _anatomy(nn_model).layers
    ignored = {"mlp": all(layer.mlp is None for layer in layers), "attention": not _anatomy(nn_model).attention_layers}
    if rename_config is not None:
        ignored["mlp"] |= bool(rename_config.ignore_mlp)
        ignored["attention"] |= bool(rename_config.ignore_attn)
    return [part for part, missing in ignored.items() if missing]


def get_layer(nn_model: Any, layer: int) -> Envoy:
    """One layer."""
    return _envoy(nn_model, _site(nn_model, layer, "block"))


def get_layer_input(nn_model: Any, layer: int) -> States:
    """The residual stream before a layer."""
    site = _site(nn_model, layer, "block")
    return site.read_input(_envoy(nn_model, site).inputs)


def get_layer_output(nn_model: Any, layer: int) -> States:
    """The residual stream after a layer."""
    return _read(nn_model, layer, "block")


def set_layer_output(nn_model: Any, layer: int, tensor: States) -> None:
    """Let the model go on with another residual stream after a layer."""
    site = _site(nn_model, layer, "block")
    assign_output(_envoy(nn_model, site), site, tensor)


def get_attention(nn_model: Any, layer: int) -> Envoy:
    """A layer's attention module."""
    return _envoy(nn_model, _site(nn_model, layer, "attention"))


def get_attention_output(nn_model: Any, layer: int) -> States:
    """What a layer's attention computes; a norm or a multiplier may come behind it."""
    return _read(nn_model, layer, "attention_raw")


def get_mlp(nn_model: Any, layer: int) -> Envoy:
    """A layer's MLP module."""
    return _envoy(nn_model, _site(nn_model, layer, "mlp"))


def get_mlp_output(nn_model: Any, layer: int) -> States:
    """What a layer's MLP computes; a norm or a multiplier may come behind it."""
    return _read(nn_model, layer, "mlp_raw")


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
    site = _anatomy(nn_model).ln_final
    if site is None:
        raise InvalidRequest("this model has no norm between its last layer and its head.")
    return _envoy(nn_model, site)


def get_unembed(nn_model: Any) -> Envoy:
    """The module from hidden states to logits."""
    site = _anatomy(nn_model).lm_head
    if site is None:
        raise InvalidRequest("this model's head is not a module of its own.")
    return _envoy(nn_model, site)


def project_on_vocab(nn_model: Any, h: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocabulary"]:
    """The logits for hidden states after the last layer; exact."""
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.project_on_vocab(h)
    with _quiet(nn_model):
        return vocabulary.project(nn_model._module, _anatomy(nn_model), h, type(nn_model._module).__name__)


def skip_layer(nn_model: Any, layer: int, skip_with: States | None = None) -> None:
    """Leave out one layer."""
    skip_layers(nn_model, layer, layer, skip_with)


def skip_layers(nn_model: Any, start_layer: int, end_layer: int, skip_with: States | None = None) -> None:
    """Leave out layers from the first to the last, inclusive."""
    states = get_layer_input(nn_model, start_layer) if skip_with is None else skip_with
    for layer in range(start_layer, end_layer + 1):
        site = _site(nn_model, layer, "block")
        if site.carries:
            assign_output(_envoy(nn_model, site), site, states)
        else:
            _envoy(nn_model, site).skip(site.make_output(states))


def _anatomy(nn_model: Any) -> Anatomy:
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.anatomy
    if "_nnterp_anatomy" not in nn_model.__dict__:
        with _quiet(nn_model):
            found = resolve(nn_model._module, probe(nn_model._module))
        object.__setattr__(nn_model, "_nnterp_anatomy", found)
    return nn_model.__dict__["_nnterp_anatomy"]


def _quiet(nn_model: Any) -> Any:
    return StandardizedTransformer.standing_down(nn_model)


def _site(nn_model: Any, layer: int, part: Part) -> Site:
    anatomy = _anatomy(nn_model)
    name = str(getattr(nn_model, "name", None) or type(nn_model._module).__name__)
    return require_part(anatomy.layers[layer_index(layer, anatomy, name)], part, anatomy, name)


def _envoy(nn_model: Any, site: Site) -> Any:
    return nn_model.interleaver.envoys[id(site.module)]


def _read(nn_model: Any, layer: int, part: Part) -> States:
    site = _site(nn_model, layer, part)
    return read_output(_envoy(nn_model, site), site)


collect_last_token_activations_session = collect_token_activations_batched
"""Locally, a session saves nothing."""

__all__ = [
    "ModuleAccessor",
    "Prompt",
    "RenameConfig",
    "TargetPrompt",
    "TargetPromptBatch",
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
