"""Tiny randomly initialised models of every causal-LM type that the installed transformers registers."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nnterp_mcp.verification.tiny_configs import (
    BOS,
    EOS,
    HIDDEN,
    PAD,
    RESERVED,
    UNBUILDABLE,
    VOCABULARY,
    causal_lm_class,
    change_with_length,
    config_class,
    ropes,
    shrink,
)

EMBEDDING_STD = 0.3
NOISE = 0.1


def causal_lm_types() -> list[str]:
    """Every model type with a causal LM in the installed transformers, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A small, consistent configuration of a type, in its causal form.

    Args:
        model_type: One of `causal_lm_types()`.

    Returns:
        The configuration from which transformers builds the type's causal LM: for some multimodal types
        that is the text part alone.

    Raises:
        LookupError: The type is unknown, or cannot be a text-only causal LM by itself; the message says why.
    """
    if model_type in UNBUILDABLE:
        raise LookupError(f"{model_type} cannot be a causal LM by itself: {UNBUILDABLE[model_type]}")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LookupError(f"transformers registers no causal LM of type {model_type!r}")
    return shrink(config_class(model_type))


def tiny_model(
    model_type: str, *, seed: int = 0, attn_implementation: str | None = None, rope: str | None = None
) -> PreTrainedModel:
    """A tiny model of a type, whose weights are random but far from degenerate.

    Matrices keep the size of what they multiply, so that logits depend on the prompt, on every layer and on
    attention; vectors (norms, biases, gates) are their usual first value and some noise, so that no factor
    is exactly one and no term exactly zero.

    Args:
        model_type: One of `causal_lm_types()`.
        seed: Equal seeds give equal weights, bit for bit. The global random state is left alone.
        attn_implementation: As in transformers; its own choice by default.
        rope: `longrope` or `dynamic`, for rotary encodings that change with the length of a text; the type's own
            by default.

    Returns:
        The model on the CPU, in float32 and evaluation mode.

    Raises:
        LookupError: As for `tiny_config`; or the type has no such encoding.
    """
    config = tiny_config(model_type)
    if rope is not None:
        change_with_length(config, rope, _count_frequencies(model_type))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The automatic classes end here too, but refuse the decoder of a text-to-music model.
        build = causal_lm_class(model_type)._from_config  # pyright: ignore[reportPrivateUsage]
        model = build(config, attn_implementation=attn_implementation, dtype=torch.float32)
    _enliven(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _count_frequencies(model_type: str) -> int:
    text = tiny_config(model_type).get_text_config(decoder=True)
    counts = {
        buffer.numel()
        for module in tiny_model(model_type).modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and hasattr(module, "rope_type")
    }
    if not ropes(text) or len(counts) != 1:
        raise LookupError(f"{model_type} has no rotary encoding, or several sizes of it")
    return counts.pop()


def tiny_tokenizer(vocab_size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the tiny models, made in memory.

    Args:
        vocab_size: Size of the model's vocabulary; the last few ids stay unused, as placeholders.

    Returns:
        A fast tokenizer with offsets, which reads any text, begins it with a bos token and pads on the left.
    """
    special = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - RESERVED,
        special_tokens=[special[i] for i in sorted(special)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "The capital of France is Paris, and that of Spain is Madrid."
    tokenizer.train_from_iterator([words, words], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


@torch.no_grad()
def _enliven(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Redraws all that training would have set: each parameter, and biases that are saved as buffers."""
    drawn: set[int] = set()  # a tied parameter has several owners
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in drawn:
                drawn.add(id(parameter))
                _redraw(module, parameter, generator)
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point() and buffer.ndim and buffer.min() == buffer.max():
            buffer.add_(_normal(buffer, NOISE, generator))


def _redraw(module: nn.Module, parameter: nn.Parameter, generator: torch.Generator) -> None:
    if isinstance(module, nn.Embedding):
        if parameter.requires_grad:  # or it is a table of sines
            parameter.copy_(_normal(parameter, EMBEDDING_STD, generator))
    elif _is_matrix(parameter):
        inputs = parameter[0].numel() if isinstance(module, nn.Conv1d) else HIDDEN
        parameter.copy_(_normal(parameter, inputs**-0.5, generator))
    else:
        parameter.add_(_normal(parameter, NOISE, generator))


def _is_matrix(parameter: torch.Tensor) -> bool:
    """True for matrices that multiply inputs, which start random around zero, unlike gates, scales and decays."""
    return parameter.ndim > 1 and bool(parameter.mean().abs() < 0.5 * parameter.std())


def _normal(like: torch.Tensor, std: float, generator: torch.Generator) -> torch.Tensor:
    return std * torch.randn(like.shape, generator=generator)
