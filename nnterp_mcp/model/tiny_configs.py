"""Small configurations of every causal-LM type: one general rule, and the exceptions that it cannot know.

The general rule goes over the fields which a configuration class declares, gives each size a small value
by its name, and lets the class derive the rest, exactly as it does for a published model.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS, HIDDEN, HEADS, KV_HEADS, VOCABULARY, POSITIONS, WINDOW = 4, 64, 4, 2, 320, 256, 32
PAD, BOS, EOS = 0, 1, 2

# Ids at the end of the vocabulary which no tokenizer uses: placeholders for images, audio and the like.
RESERVED = 16

# The first pattern that matches a field's whole name gives its value.
SIZES: dict[str, int | float] = {
    r"(unpadded_|decoder_)?vocab_size(_per_layer_input)?": VOCABULARY,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length": POSITIONS,
    r"sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size|local_attention|"
    r"local_attention_window_len|keep_window_size|index_topk": WINDOW,
    r"num_kv_shared_layers": LAYERS // 2,
    r"first_k_dense_replace|num_dense_layers|moe_layer_start_index": 1,
    r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|num_blocks|depth|max_window_layers": LAYERS,
    r".*num_key_value_heads|num_kv_heads|kv_n_heads|linear_num_key_heads": KV_HEADS,
    r".*_heads|n_heads?": HEADS,
    r"mamba_d_head|mamba_head_?dim": 2 * HIDDEN // HEADS,
    r"mamba_d_ssm": 2 * HIDDEN,
    r"qk_rope_head_dim|rotary_dim": HIDDEN // HEADS // 2,
    r".*head_dim|dim_head|kv_channels|attention_head_size|d_kv": HIDDEN // HEADS,
    r"hidden_size_per_layer_input|shape_embed_dim|pronunciation_embed_dim|router_hidden_size": 16,
    r"(input_|output_)?embedding_size": HIDDEN // 2,
    r"hidden_size|d_model|n_embd|emb_dim|hidden_size_global|backbone_hidden_size": HIDDEN,
    r"(moe|expert|shared).*(intermediate_size|ffn_hidden_size)": 48,
    r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|feed_forward_size|d_inner|d_?ff|dim_ff": 96,
    r"q_lora_rank": 32,
    r".*_rank|hc_lowrank": 16,
    r"(moe_)?num_(local_)?experts|n_routed_experts": 4,
    r"num_experts_per_tok(en)?|moe_k|moe_top_?k|zero_expert_num": 2,
    r"n_groups?|mamba_n_?groups|o_groups": 2,
    r"topk_group": 1,
    r"mamba_d_state|state_size|ssm_state_size": 16,
    r"(mamba_)?chunk_size|index_block_size|.*attn_chunk_length": 16,
    r"query_pre_attn_scalar": HIDDEN // HEADS,
    # Away from one, where a forgotten multiplication would not show.
    r"attention_multiplier": (HIDDEN // HEADS) ** -0.5,
    r"(embedding|key|lm_head|attention_in|attention_out|ssm_in|ssm_out)_multiplier|logits_scaling": 1.5,
    r"residual_multiplier": 0.75,
    r".*drop.*": 0.0,
    r"(pad|unk|mask)_(token_id|index)": PAD,
    r"(bos|decoder_start|cls)_token_id": BOS,
    r".*(eos|sep|eod)_token_id": EOS,
}

# Fields which stay unset in a default configuration, where the small one shall have a value.
ALWAYS = {"num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id"}

# What the general rule cannot know, by type: here a field's name is exact.
EXCEPTIONS: dict[str, dict[str, Any]] = {}

UNBUILDABLE: dict[str, str] = {}


def causal_lm_class(model_type: str) -> type[PreTrainedModel]:
    """The class which transformers registers as the causal LM of a type."""
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def config_class(model_type: str) -> type[PreTrainedConfig]:
    """The configuration class from which the causal LM of a type is built.

    It is the type's own, or that of its text part where the model class takes only this part.
    """
    own = CONFIG_MAPPING[model_type]
    expected = causal_lm_class(model_type).config_class
    parts = [spec.config_class for spec in own.sub_configs_defaults.values()]
    return expected if expected in parts else own


def shrink(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A small configuration of a class, its parts included."""
    exceptions = EXCEPTIONS.get(cls.model_type, {})
    values = {name: value for f in fields(cls) if (value := _small(f)) is not None for name in [f.name]}
    if "kv_lora_rank" in values:  # latent attention expands to as many keys as queries
        values["num_key_value_heads"] = HEADS
    values |= _placeholders(cls) | _parts(cls) | exceptions
    return cls(**(_layer_kinds(cls, values) | values))


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def _small(field: Field[Any]) -> Any:
    """The small value for a field, or None where its default stays."""
    default = _default(field)
    if field.name == "is_decoder":
        return True
    if isinstance(default, bool) or not (isinstance(default, int | float) or field.name in ALWAYS):
        return None
    for pattern, value in SIZES.items():
        if re.fullmatch(pattern, field.name):
            return None if default in (0, -1) and value not in (PAD, BOS, EOS) else value
    return None


def _placeholders(cls: type[PreTrainedConfig]) -> dict[str, int]:
    """Distinct ids at the end of the vocabulary for image, audio and other placeholder tokens."""
    names = [
        f.name
        for f in fields(cls)
        if re.fullmatch(r".*_token_(id|index)", f.name)
        and isinstance(_default(f), int)
        and not any(re.fullmatch(pattern, f.name) for pattern in SIZES)
    ]
    return {name: VOCABULARY - 1 - place for place, name in enumerate(names)}


def _parts(cls: type[PreTrainedConfig]) -> dict[str, PreTrainedConfig]:
    return {
        name: shrink(CONFIG_MAPPING[spec.model_type])
        for name, spec in cls.sub_configs_defaults.items()
        if not spec.optional
    }


def _layer_kinds(cls: type[PreTrainedConfig], values: dict[str, Any]) -> dict[str, list[str]]:
    """As many layers as there shall be, so that each kind which the default model has appears among them."""
    names = {f.name for f in fields(cls)} & {"layer_types", "layers_block_type", "mlp_layer_types"}
    if not names:
        return {}
    whole = cls(**_parts(cls))
    kinds = {name: list(dict.fromkeys(getattr(whole, name) or ())) for name in names}
    return {name: (kind * LAYERS)[:LAYERS] for name, kind in kinds.items() if len(kind) > 1}
