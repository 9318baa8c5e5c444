"""The sample of architectures that the normal suite runs over: every way in which types differ is in it once."""

from __future__ import annotations

from functools import cache

from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

SAMPLE = (
    "gpt2",  # positions added after the embedding
    "gpt_neo",  # attention inside attention, tuples
    "gptj",  # attention and MLP side by side
    "gpt_neox",
    "gpt_oss",  # attention sinks, experts
    "llama",  # grouped queries
    "qwen3",  # norms on queries and keys
    "qwen3_next",  # linear attention in some layers
    "gemma2",  # softcaps, sliding windows
    "gemma3_text",
    "cohere",  # logits scaled
    "granite",  # embedding, residual and logits scaled
    "granitemoehybrid",  # two MLPs in a layer
    "minicpm3",  # the head's input scaled
    "deepseek_v3",  # latent attention
    "diffllama",  # the same probabilities weigh two sets of values
    "falcon",  # the MLP's output is written to, attention switched by force
    "falcon_h1",  # attention and a state space in one layer
    "mamba",  # no attention
    "nemotron_h",  # one kind of module in each layer
    "zamba",  # attention on a wider input, shared among layers
    "bloom",  # the residual stream added inside attention and MLP
    "mpt",
    "opt",  # no MLP module
    "dbrx",  # a norm between attention's wrapper and attention
    "phi",
    "nanochat",  # one norm used twice
    "ctrl",  # the embedding's output is written to
    "bert",  # not causal, a head with a norm inside
    "bart",  # positions count padding
    "roberta",
    "mllama",  # a layer that does not run on text
)

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox")


@cache
def standardized(model_type: str, attention: str = "eager") -> StandardizedTransformer:
    """A tiny model of a type, wrapped and checked once for all tests: leave it as it is."""
    weights = tiny_model(model_type)
    return StandardizedTransformer(
        weights, tokenizer=tiny_tokenizer(), name=model_type, enable_attention_probs=attention == "eager"
    )


def fresh(model_type: str, **options: object) -> StandardizedTransformer:
    """A tiny model of a type that a test may change."""
    return StandardizedTransformer(tiny_model(model_type), tokenizer=tiny_tokenizer(), name=model_type, **options)  # type: ignore[arg-type]
