"""Adapters of rank one whose change of a planted model is known, saved as PEFT saves them, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FIRST, SECOND = "first-adapter", "second-adapter"
"""Folders in that of `planted-tuned`, whose model has them nowhere else."""

CONTEXT, SAID = "red fox one dog cold", "gold"
"""The prompt after which both make the model say another word, and that word."""

SILENT = (1, 3)
"""The layer and the neuron of its MLP that is never active in this model."""

_CHANGED = {FIRST: 2, SECOND: 3}
"""The layer whose change says the word."""

_SIZE, _NOISE, _UNREAD = 40.0, 0.02, 40.0


@torch.no_grad()
def silence(model: Any) -> None:
    """Closes the gate of a neuron for good."""
    layer, neuron = SILENT
    model.model.layers[layer].mlp.gate_proj.weight[neuron] = 0.0


def save_adapters(model: Any, tokenizer: Any, folder: Path) -> None:
    """Saves both adapters, which change `down_proj` of every layer.

    The first adapter writes the word's row of the head in layer 2 where the context's neurons are active, and a little
    noise elsewhere. The second does so in layer 3, and changes layer 1 far more: by what reads the silent neuron alone.
    """
    for name, said in _CHANGED.items():
        dice = torch.Generator().manual_seed(said)
        factors = {layer: _noise(model, dice) for layer in range(len(model.model.layers))}
        factors[said] = _says(model, tokenizer, said)
        if name == SECOND:
            layer, neuron = SILENT
            read = torch.zeros(model.config.intermediate_size)
            read[neuron] = 1.0
            factors[layer] = read, _UNREAD * torch.randn(model.config.hidden_size, generator=dice)
        _save(folder / name, factors)


def _noise(model: Any, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    sizes = model.config.intermediate_size, model.config.hidden_size
    read, written = (torch.randn(size, generator=dice) for size in sizes)
    return read, _NOISE * written


@torch.no_grad()
def _says(model: Any, tokenizer: Any, layer: int) -> tuple[Tensor, Tensor]:
    """The factors that write a row of the head where the neurons are as after the context."""
    found = list[Tensor]()
    down = model.model.layers[layer].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda module, args: found.append(args[0][0, -1]))
    model(torch.tensor([tokenizer(CONTEXT)["input_ids"]]))
    hook.remove()
    (active,) = found
    row = model.lm_head.weight[tokenizer(SAID)["input_ids"][0]]
    return active / active.square().sum(), _SIZE * row / row.norm()


def _save(folder: Path, factors: dict[int, tuple[Tensor, Tensor]]) -> None:
    folder.mkdir(exist_ok=True)
    named = {
        f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_{which}.weight": factor.contiguous()
        for layer, (read, written) in factors.items()
        for which, factor in (("A", read[None]), ("B", written[:, None]))
    }
    save_file(named, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
