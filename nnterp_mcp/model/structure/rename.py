"""Names of modules that structure alone does not identify, and nnterp's ways to give them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

Names = str | list[str] | None


class AttnProbFunction(ABC):
    """Where a model's attention probabilities are formed, for attention that is not found by following its softmax."""

    @abstractmethod
    def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
        """The operation whose output they are.

        Args:
            attention_module: A layer's attention, as nnsight wraps it.
            return_module_source: Give the source of the whole function in which they are formed instead.
        """

    def __call__(self, attention_module: Any, return_module_source: bool = False) -> Any:
        """The same."""
        return self.get_attention_prob_source(attention_module, return_module_source)


@dataclass
class RenameConfig:
    """Which modules of a model play which part. Whatever is left out is found by structure.

    A name is the last part of a module's dotted path, or more of it; of several names the first that exists counts.

    Args:
        attn_name: The attention module of a layer.
        mlp_name: The MLP module of a layer.
        ln_final_name: The norm between the last layer and the head.
        lm_head_name: The module from hidden states to logits.
        model_name: Accepted for code written for nnterp: the container of the layers needs no name.
        layers_name: The list of layers.
        attn_prob_source: From a layer's attention, as nnsight wraps it, to the operation (`….source.…`) whose output
            is the attention probabilities; for attention that is not found by following its softmax.
        ignore_mlp: Treat the layers as having no MLP module.
        ignore_attn: Treat the layers as having no attention.
        attn_head_config_key: The number of attention heads, or where the model's configuration has it.
        hidden_size_config_key: Accepted for code written for nnterp: widths are measured.
        vocab_size_config_key: Accepted for code written for nnterp: sizes are measured.
        attn_output_source: Path, from a layer on, of the module whose output attention adds to the residual stream.
        mlp_output_source: The same for the MLP.
    """

    attn_name: Names = None
    mlp_name: Names = None
    ln_final_name: Names = None
    lm_head_name: Names = None
    model_name: Names = None
    layers_name: Names = None
    attn_prob_source: Callable[[Any], Any] | None = None
    ignore_mlp: bool | None = None
    ignore_attn: bool | None = None
    attn_head_config_key: Names | int = None
    hidden_size_config_key: Names | int = None
    vocab_size_config_key: Names | int = None
    attn_output_source: str | None = None
    mlp_output_source: str | None = None


_FIELDS = {
    "model": "model_name",
    "layers": "layers_name",
    "self_attn": "attn_name",
    "mlp": "mlp_name",
    "ln_final": "ln_final_name",
    "lm_head": "lm_head_name",
}
"""Standard names, and the fields that say which modules have them."""

_FORMER = {field.replace("_name", "_rename"): field for field in _FIELDS.values()}
"""Parameters of nnterp's models before there was a `RenameConfig`, and its fields."""


def read_names(
    config: RenameConfig | None, rename: Mapping[str, str | list[str]] | None, options: dict[str, Any]
) -> tuple[RenameConfig | None, dict[str, list[str]]]:
    """Merges nnterp's three ways of naming modules.

    Args:
        config: The present one.
        rename: From modules' own names to further ones; a standard name among these says which module has it.
        options: Other keyword arguments. nnterp's former ones, such as `attn_rename`, are taken out.

    Returns:
        The configuration with all of them, and what of `rename` gives modules names that are not standard.
    """
    given = {_FORMER[key]: options.pop(key) for key in list(options) if key in _FORMER}
    further: dict[str, list[str]] = {}
    for own, aliases in (rename or {}).items():
        for alias in _listed(aliases):
            if alias in _FIELDS:
                given[_FIELDS[alias]] = [*_listed(given.get(_FIELDS[alias])), own]
            else:
                further.setdefault(own, []).append(alias)
    return (replace(config or RenameConfig(), **given) if given else config), further


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def find_named(root: nn.Module, names: Names) -> nn.Module | None:
    """The first module below `root` whose path is, or ends with, one of the names."""
    for name in _listed(names):
        for path, module in root.named_modules():
            if path == name or path.endswith(f".{name}"):
                return module
    return None


_MODELS = ("transformer", "gpt_neox", "backbone")
_CONTAINERS = ("model", "model.decoder", "model.language_model", *_MODELS)
_PARTS: dict[str, tuple[str, ...]] = {
    "layers": ("layers", "h", "blocks"),
    "ln_final": ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm", "final_norm", "embedding_norm"),
    "embed_tokens": ("embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings"),
}
_SUBLAYERS: dict[str, tuple[str, ...]] = {
    "self_attn": ("attn", "self_attention", "attention", "norm_attn_norm", "temporal_block"),
    "mlp": ("block_sparse_moe", "feed_forward", "ffn", "mlp_block"),
}


def get_rename_dict(rename_config: RenameConfig | None = None) -> dict[str, str]:
    """Names for nnsight's `rename=`, under which the usual families have the standard names.

    nnsight renames by name, before anything is known of the model, so this is a list of what modules are called and
    covers less than `StandardizedTransformer`, which finds them by what they do.

    Args:
        rename_config: Further names.

    Returns:
        From the names that architectures use to the standard ones.
    """
    config = rename_config or RenameConfig()
    names = {f"{root}.{part}": standard for standard, parts in _PARTS.items() for part in parts for root in _CONTAINERS}
    names |= {part: standard for standard, parts in _SUBLAYERS.items() for part in parts}
    names |= {"embed_out": "lm_head", **dict.fromkeys(_MODELS, "model")}
    for standard, field in _FIELDS.items():
        names |= dict.fromkeys(_listed(getattr(config, field)), standard)
    return names
