"""The families on which the two are compared, and where each keeps its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnterp_mcp.verification.tiny import tiny_config, tiny_tokenizer
from nnterp_mcp.verification.tiny_configs import causal_lm_class

WINDOW = 6
"""Tokens that sliding layers see: fewer than most prompts have."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts; those inside a layer are named from it.

    Attributes:
        embedding: The module whose output the token embeddings are.
        layers: The list of layers.
        attention: Attention in a layer.
        added: What comes behind attention and behind the MLP before the residual stream, where there is something.
        projection: The output projection, whose input is the heads' output.
        mlp: The MLP in a layer.
        norm: The norm behind the last layer.
        down: The last linear map of the MLP, whose inputs are the neurons.
        reads: The MLP itself, where `mlp` is the module in it that returns its output.
        lacks: Sites that the tools do not offer.
        multiplier: The field of the configuration by which both are multiplied before they are added.
        interface: Whether its attention goes through the interface that transformers shares among models.
        changed: Fields of the configuration that are not those of other tests.
    """

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    attention: str = "self_attn"
    projection: str = "self_attn.o_proj"
    mlp: str = "mlp"
    added: tuple[str, str] | None = None
    norm: str = "model.norm"
    down: str = "mlp.down_proj"
    reads: str | None = None
    lacks: tuple[str, ...] = ()
    multiplier: str | None = None
    interface: bool = True
    changed: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def attention_added(self) -> str:
        """The part of a layer whose output attention adds to the residual stream."""
        return self.added[0] if self.added else self.attention

    @property
    def mlp_read(self) -> str:
        """The MLP, whose input is what it reads."""
        return self.reads or self.mlp

    @property
    def mlp_added(self) -> str:
        """The part of a layer whose output the MLP adds to the residual stream."""
        return self.added[1] if self.added else self.mlp


_SLIDING = {"sliding_window": WINDOW}
_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    # Positions added to the embedding, queries, keys and values in one matrix.
    "gpt2": Family(
        "transformer.wte", "transformer.h", "attn", "attn.c_proj", norm="transformer.ln_f", down="mlp.c_proj"
    ),
    "opt": Family(
        "model.decoder.embed_tokens",
        "model.decoder.layers",
        projection="self_attn.out_proj",
        mlp="fc2",
        norm="model.decoder.final_layer_norm",
        lacks=("mlps_input", "neurons", "mlps_output", "mlps_raw_output"),
    ),
    # Grouped queries.
    "llama": Family(),
    "qwen3": Family(),
    "granite": Family(multiplier="residual_multiplier"),
    # Sliding windows.
    "mistral": Family(changed=_SLIDING),
    "phi3": Family(changed=_SLIDING),
    # A norm behind each sublayer, before one too in some, windows in some layers, softcaps.
    "gemma2": Family(changed=_SLIDING, added=_BEHIND),
    "gemma3_text": Family(changed=_SLIDING, added=_BEHIND),
    "olmo2": Family(added=_BEHIND),
    "olmo3": Family(changed=_SLIDING, added=_BEHIND),
    "exaone4": Family(changed=_SLIDING, added=_BEHIND),
    "glm4": Family(added=("post_self_attn_layernorm", "post_mlp_layernorm")),
    # Attention and MLP side by side.
    "gpt_neox": Family(
        "gpt_neox.embed_in",
        "gpt_neox.layers",
        "attention",
        "attention.dense",
        norm="gpt_neox.final_layer_norm",
        down="mlp.dense_4h_to_h",
    ),
    "phi": Family(projection="self_attn.dense", norm="model.final_layernorm", down="mlp.fc2"),
    "cohere2": Family(changed=_SLIDING),
    "falcon": Family(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention",
        "self_attention.dense",
        norm="transformer.ln_f",
        down="mlp.dense_4h_to_h",
        interface=False,
    ),
    # Keys and values from one small state; attention in chunks.
    "deepseek_v3": Family(lacks=("neurons",)),
    "llama4_text": Family(
        mlp="feed_forward",
        changed={"attention_chunk_size": WINDOW},
        lacks=("mlps_input", "neurons", "mlps_output", "mlps_raw_output"),
    ),
    # Experts; attention sinks.
    "qwen3_moe": Family(lacks=("neurons",)),
    "gpt_oss": Family(changed=_SLIDING, lacks=("neurons",)),
    # Distances added to the scores, the residual stream added inside attention and MLP.
    "bloom": Family(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention.dense",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        norm="transformer.ln_f",
        reads="mlp",
        down="mlp.dense_4h_to_h",
        interface=False,
    ),
}


def save_tiny(model_type: str, folder: Path, padding_side: str, seed: int = 0) -> Path:
    """Saves a tiny model with its tokenizer; equal arguments give equal weights."""
    import torch

    from nnterp_mcp.verification import tiny

    config = tiny_config(model_type)
    for name, value in FAMILIES[model_type].changed.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = causal_lm_class(model_type)(config)
    tiny._enliven(model, torch.Generator().manual_seed(seed))  # pyright: ignore[reportPrivateUsage]
    model.eval().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = padding_side
    tokenizer.save_pretrained(folder)
    return folder
