"""Small configurations of every causal-LM type: one general rule, and the exceptions that it cannot know.

The general rule goes over the fields which a configuration class declares, gives each size a small value
by its name, and lets the class derive the rest, exactly as it does for a published model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, Field, fields
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS, HIDDEN, HEADS, KV_HEADS, VOCABULARY, POSITIONS, WINDOW = 4, 64, 4, 2, 320, 256, 32
PAD, BOS, EOS = 0, 1, 2
HEAD_DIM = HIDDEN // HEADS

# Ids at the end of the vocabulary which no tokenizer uses: placeholders for images, audio and the like.
RESERVED = 16

# The first pattern that matches a field's whole name gives its value.
SIZES: dict[str, int | float] = {
    r"(unpadded_|decoder_)?vocab_size(_per_layer_input)?": VOCABULARY,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length": POSITIONS,
    r"sliding_window(_size)?|(local_)?attention_window_(size|len)|window_size|attention_chunk_size|"
    r"local_attention|keep_window_size|index_topk|floor_scale|log_scaling_n_floor|"
    r"original_max_position_embeddings": WINDOW,
    r"index_topk_blocks": WINDOW // 16,
    r"num_kv_shared_layers": LAYERS // 2,
    r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|topk_group": 1,
    r"(num_)?(hidden_|encoder_|decoder_|global_)?layers|n_layers?|num_blocks|depth|max_window_layers": LAYERS,
    r".*num_key_value_heads|num_kv_heads|kv_n_heads|linear_num_key_heads": KV_HEADS,
    r".*_heads|n_heads?": HEADS,
    r"mamba_d_head|mamba_head_?dim": 2 * HIDDEN // HEADS,
    r"mamba_d_ssm": 2 * HIDDEN,
    r"qk_rope_head_dim|rotary_dim": HEAD_DIM // 2,
    r".*head_dim|dim_head|kv_channels|attention_head_size|query_pre_attn_scalar": HEAD_DIM,
    r"hidden_size_per_layer_input|shape_embed_dim|pronunciation_embed_dim|router_hidden_size": 16,
    r"(input_|output_)?embedding_size|dim_model_base": HIDDEN // 2,
    r"hidden_size|d_model|n_embd|emb_dim|hidden_size_global|lru_width": HIDDEN,
    r"(moe|expert|shared).*(intermediate_size|ffn_hidden_size)": 48,
    r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|feed_forward_size|d_inner|d_?ff|dim_ff|mlp_dim": 96,
    r"q_lora_rank": 32,
    r".*_rank|hc_lowrank|mamba_d_state|(ssm_)?state_size": 16,
    r"(moe_)?num_(local_)?experts|n_routed_experts": 4,
    r"num_experts_per_tok(en)?|moe_k|moe_top_?k|zero_expert_num": 2,
    r"n_groups?|mamba_n_?groups|o_groups": 2,
    r"(mamba_)?chunk_size|(index_)?block_size|.*attn_chunk_length": 16,
    r".*drop.*": 0.0,
    # Away from one, where a forgotten multiplication would not show.
    r"attention_multiplier": HEAD_DIM**-0.5,
    r"(embedding|key|lm_head|attention_in|attention_out|ssm_in|ssm_out)_multiplier|logits_scaling|"
    r"logits_mup_width_multiplier": 1.5,
    r"residual_multiplier": 0.75,
    r"logit_scale": 0.5,
}

TOKENS: dict[str, int] = {
    r"(pad|unk|mask)_(token_id|index)": PAD,
    r"(bos|cls|decoder_start)_token_id": BOS,
    r".*(eos|sep|eod)_token_id": EOS,
}

# Fields which are unset in a default configuration, and shall have a value all the same.
UNSET = re.compile(
    "num_key_value_heads|head_dim|n_routed_experts|num_experts_per_tok|logit_scale|(pad|bos|eos)_token_id"
)

# Values that the general rule cannot derive, by the model type of a configuration or of a part of one.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    # Each kind of layer, where a default configuration has one kind only, or names layers by index.
    "bamba": {"attn_layer_indices": [1, 3]},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1} | {"expert_layer_period": 3, "expert_layer_offset": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mllama_text_model": {"cross_attention_layers": [1]},
    # Sizes that follow from one another by rules of their own.
    "deepseek_v2": {"head_dim": None},
    "dots3_note_text": {"n_group": 1, "swa_num_attention_heads": HEADS, "swa_num_key_value_heads": HEADS}
    | {"swa_q_lora_rank": 32, "swa_kv_lora_rank": 16, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16}
    | {"swa_v_head_dim": HEAD_DIM},
    "gemma4_text": {"global_head_dim": 2 * HEAD_DIM},
    "gemma4_unified_text": {"global_head_dim": 2 * HEAD_DIM},
    "got_ocr2_vision": {"output_channels": HIDDEN},
    "phi4_multimodal_audio": dict.fromkeys(
        ("nemo_conv_channels", "ext_pw_out_channel", "depthwise_separable_out_channel"), HIDDEN
    ),
    "hrm_text": {"num_hidden_layers": LAYERS // 2},  # in each of its two stacks
    "longcat_flash": {"head_dim": HEAD_DIM // 2},
    "mamba2": {"head_dim": 2 * HIDDEN // HEADS},
    "reformer": {"axial_pos_shape": (16, 16), "axial_pos_embds_dim": (32, 32), "hash_seed": 0}
    | {"attn_layers": ["local", "lsh"] * 2},
    "xlstm": {"qk_dim_factor": 1.0},
    "zaya": {"num_experts_per_tok": 1},
    # Parts that a default configuration leaves out.
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": KV_HEADS, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "dots1": {"n_shared_experts": 1},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD_DIM}
    | {"indexer_budget": WINDOW, "indexer_compress_ratio": 4, "ple_layer_ids": [1], "heads_per_ngram": 2}
    | {"ngram_vocab_size_base": VOCABULARY, "split_ngram_parts": 2},
    "gemma3n_audio": {"vocab_size": RESERVED // 2, "vocab_offset": VOCABULARY - RESERVED // 2},
    "xmod": {"default_language": "en_XX"},
    # The causal form of what is not causal by default.
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "prophetnet": {"add_cross_attention": False},
    "xlm": {"causal": True},
    # One stream of codes, read and written as one stream of tokens.
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    # Patches are found anew in every forward pass, without a cache; they end where the small patcher's
    # entropy, never far from that of a uniform guess, is above its median.
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY, "use_cache": False, "patching_threshold": 5.25},
}

# A part which needs a package more than transformers, and which text never enters, gives way to another.
STAND_INS: dict[str, dict[str, PreTrainedConfig]] = {
    "gemma3n": {
        "vision_config": SiglipVisionConfig.from_dict(
            {
                "hidden_size": HIDDEN,
                "intermediate_size": 96,
                "num_hidden_layers": 1,
                "num_attention_heads": HEADS,
            }
            | {"vocab_size": RESERVED // 2, "vocab_offset": VOCABULARY - RESERVED, "rms_norm_eps": 1e-6}
        )
    },
}

UNBUILDABLE: dict[str, str] = dict.fromkeys(
    ("gemma4_assistant", "gemma4_unified_assistant"),
    "it drafts for a Gemma 4 model, out of that model's hidden states, keys and values "
    "(inputs_embeds and shared_kv_states), and does not read input_ids",
)


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
    return expected if expected is not None and expected in parts else own


def shrink(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A small configuration of a class, its parts included."""
    values: dict[str, Any] = {}
    for field in fields(cls):
        if (value := _small(field)) is not None:
            values[field.name] = value
    if "kv_lora_rank" in values:  # latent attention expands to as many keys as queries
        values["num_key_value_heads"] = HEADS
    values |= _placeholders(cls) | _parts(cls)
    values |= _layer_kinds(cls) | deepcopy(EXCEPTIONS.get(cls.model_type, {}))
    config = cls(**values)
    for rope in ropes(config):
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = WINDOW
    vars(config).update(deepcopy(STAND_INS.get(cls.model_type, {})))  # past the class's own type check
    return config


def ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The parameters of a configuration's rotary encodings: of all layers, or of each kind of layer."""
    found: Any = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    return [found] if "rope_type" in found else [rope for rope in found.values() if isinstance(rope, dict)]


def change_with_length(config: PreTrainedConfig, kind: str, frequencies: int) -> None:
    """Lets rotary encodings depend on the length of the longest text.

    Args:
        config: The configuration, which has such encodings; it is changed.
        kind: `longrope`, whose frequencies switch beyond a length, or `dynamic`, which scales them beyond it.
        frequencies: How many there are.
    """
    text = config.get_text_config(decoder=True)
    for rope in ropes(text):
        rope |= {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": WINDOW}
        if kind == "longrope":
            longer = [1.0 + 3 * at / frequencies for at in range(frequencies)]
            rope |= {
                "short_factor": [1.0] * frequencies,
                "long_factor": longer,
                "short_mscale": 1.0,
                "long_mscale": 1.2,
            }
    if kind == "longrope":
        text.original_max_position_embeddings = WINDOW
    else:
        text.max_position_embeddings = WINDOW


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def _match(patterns: Mapping[str, Any], name: str) -> Any:
    return next((value for pattern, value in patterns.items() if re.fullmatch(pattern, name)), None)


def _small(field: Field[Any]) -> Any:
    default = _default(field)
    if field.name == "is_decoder":
        return True
    if isinstance(default, bool) or not (isinstance(default, int | float) or UNSET.fullmatch(field.name)):
        return None
    if (token := _match(TOKENS, field.name)) is not None:
        return token
    # Zero and minus one switch a thing off: they are no sizes.
    return None if default in (0, -1) else _match(SIZES, field.name)


def _placeholders(cls: type[PreTrainedConfig]) -> dict[str, int]:
    """Distinct ids at the end of the vocabulary for image, audio and other placeholder tokens."""
    names = [
        field.name
        for field in fields(cls)
        if re.fullmatch(r".*_token_(id|index)", field.name)
        and isinstance(_default(field), int)
        and _match(TOKENS, field.name) is None
    ]
    return {name: VOCABULARY - 1 - place for place, name in enumerate(names)}


def _parts(cls: type[PreTrainedConfig]) -> dict[str, PreTrainedConfig]:
    return {
        name: shrink(CONFIG_MAPPING[spec.model_type])
        for name, spec in cls.sub_configs_defaults.items()
        if not spec.optional
    }


def _layer_kinds(cls: type[PreTrainedConfig]) -> dict[str, list[str]]:
    """A short list of layer kinds, in which each kind that the default model has appears."""
    names = {field.name for field in fields(cls)} & {"layer_types", "layers_block_type", "mlp_layer_types"}
    if not names:
        return {}
    default = cls()
    kinds: dict[str, list[str]] = {name: list(dict.fromkeys(getattr(default, name) or ())) for name in names}
    return {name: (kind * LAYERS)[:LAYERS] for name, kind in kinds.items() if len(kind) > 1}
