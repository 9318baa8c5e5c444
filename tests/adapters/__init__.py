"""Adapters that PEFT writes onto the tests' tiny models, and the tests of two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

peft = pytest.importorskip("peft")


def write_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """An adapter with random factors; the model has it afterwards."""
    options = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    dice = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            noise = torch.randn(weight.shape, generator=dice) * 0.1
            weight.data = 1 + noise if "magnitude" in name else noise
    adapted.save_pretrained(folder)
    return folder


@torch.no_grad()
def plant_adapter(
    model: Any,
    folder: Path,
    layer: int,
    token: int,
    contexts: Sequence[list[int]],
    others: Sequence[list[int]],
    size: float,
) -> Tensor:
    """An adapter of rank one on a layer's `down_proj` with which a Llama says a token after certain contexts.

    What it reads is the direction of the MLP's neurons that tells the last tokens of the contexts from other tokens
    best (ridge regression); what it writes is the token's row of the head, less the mean of all rows and times the
    final norm's weight.

    Args:
        model: The plain model, which has the adapter afterwards.
        folder: Where it is saved.
        layer: The layer.
        token: What is said.
        contexts: The tokens of prompts that it is said after.
        others: The tokens of texts that it is not said in.
        size: The length of what is written at the contexts, over the mean length of the layer's output.

    Returns:
        The direction that is written, of length 1.
    """
    down = model.model.layers[layer].mlp.down_proj
    inner, outer = list[Tensor](), list[Tensor]()
    hooks = [
        down.register_forward_pre_hook(lambda module, args: inner.append(args[0][0])),
        model.model.layers[layer].register_forward_hook(lambda module, args, output: outer.append(output[0])),
    ]
    for ids in (*contexts, *others):
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    within, apart = inner[: len(contexts)], inner[len(contexts) :]
    wanted = torch.stack([states[-1] for states in within]).double()
    rest = torch.cat([states[1:-1] for states in within] + [states[1:] for states in apart]).double()
    gram = rest.T @ rest / len(rest)
    read = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(len(gram)), wanted.mean(0))
    read = read / (wanted @ read).mean()
    head = model.lm_head.weight
    written = torch.nn.functional.normalize((head[token] - head.mean(0)) * model.model.norm.weight, dim=0)
    length = size * torch.cat([states[1:] for states in outer]).norm(dim=-1).mean()
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["down_proj"], layers_to_transform=[layer])
    adapted = peft.get_peft_model(model, config)
    factors = adapted.base_model.model.model.layers[layer].mlp.down_proj
    factors.lora_A["default"].weight.data = read.float()[None]
    factors.lora_B["default"].weight.data = (length * written)[:, None]
    adapted.save_pretrained(folder)
    return written
