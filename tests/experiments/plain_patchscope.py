"""Patchscopes by plain transformers and plain hooks: one forward pass for each source, layer and target."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TOLERANCE = 1e-5

LAYERS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "gemma3": "model.language_model.layers",  # sliding windows
    "gpt_neox": "gpt_neox.layers",
    "bloom": "transformer.h",  # tuples; a position bias of the batch's shape
    "gptj": "transformer.h",  # tuples
    "mixtral": "model.layers",
    "qwen3_next": "model.layers",  # a hybrid
    "lfm2": "model.layers",  # a hybrid
    "mamba2": "backbone.layers",  # no attention
}

SOURCES = ["The capital of France is", "Spain", "That of Spain, as every child learns at school, is Madrid"]

TARGET = "Paris: Paris, Madrid: Madrid, x: is that"


@cache
def standardized(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)


@cache
def load_smollm2(smollm2_folder: Path) -> StandardizedTransformer:
    weights: Any = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    return StandardizedTransformer(weights, tokenizer=tokenizer, name="smollm2-135m")


@contextmanager
def hooked(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Generator[None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = change(first)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def plain_states(model: Any, layers: Any, ids: list[int], position: int) -> Tensor:
    """The state after every layer at one position."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(hooked(layer, lambda hidden: found.append(hidden[0, position].clone())))
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return torch.stack(found)


@torch.no_grad()
def plain_patch(model: Any, layer: Any, ids: list[int], position: int, state: Tensor) -> Tensor:
    """Probabilities after the prompt with one state replaced."""

    def put(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[0, position] = state
        return hidden

    with hooked(layer, put):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)


def layers_of(model: StandardizedTransformer) -> Any:
    return model.module.get_submodule(LAYERS.get(model.name, "model.layers"))


def ids_of(model: StandardizedTransformer, text: str) -> list[int]:
    return model.tokenizer(text)["input_ids"]


def expected_lens(model: StandardizedTransformer, sources: list[str], target: str, position: int) -> Tensor:
    layers, ids = layers_of(model), ids_of(model, target)
    rows: list[Tensor] = []
    for source in sources:
        states = plain_states(model.module, layers, ids_of(model, source), -1)
        rows.append(
            torch.stack(
                [
                    plain_patch(model.module, layer, ids, position, state)
                    for layer, state in zip(layers, states, strict=True)
                ]
            )
        )
    return torch.stack(rows)
