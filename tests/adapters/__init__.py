"""Adapters that PEFT writes onto the tests' tiny models, and the tests of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
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
