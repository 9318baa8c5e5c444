"""Served models whose traces run in this process, after they went through nnsight's serialization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine.executors.ndif.client import Connection
from nnterp_mcp.engine.executors.ndif.experiments import EXPERIMENTS
from nnterp_mcp.engine.executors.ndif.meta_model import build_outline
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer


def serve(folder: Path) -> ServedTransformer:
    """The outline of a model in a folder, served by nnsight's own simulation of NDIF."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    wire = TransformersModel(weights, tokenizer=tokenizer, task="text-generation")
    connection = Connection("simulated", folder.name, wire, "", local=True)
    return ServedTransformer(build_outline(weights.config, False), tokenizer, connection, EXPERIMENTS)
