"""Tiny models with as many layers as are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nnterp_mcp.verification.tiny import tiny_config, tiny_tokenizer


def save_tiny(layers: int, folder: Path) -> None:
    """Writes a tiny Llama of so many layers, made at random, with a tokenizer."""
    config: Any = tiny_config("llama")
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
