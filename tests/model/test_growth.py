"""Memory after hundreds of traces, and after hundreds of loads and unloads."""

from __future__ import annotations

import gc
import weakref

import nnsight
import psutil
import pytest
import torch
from torch import nn

from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.model.families import fresh

MEGABYTE = 2**20


def held() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / MEGABYTE


def trace_once(model: StandardizedTransformer) -> None:
    with torch.no_grad(), model.trace("The capital of France is"):
        pattern = nnsight.save(model.attention_probabilities[1])
        logits = nnsight.save(model.project_on_vocab(model.layers_output[-1]))
    assert pattern.shape[1] == 4
    assert logits.shape[-1] == 320


def test_an_unloaded_model_is_gone() -> None:
    model = fresh("gemma2", enable_attention_probs=True)
    trace_once(model)
    weights: weakref.ref[nn.Module] = weakref.ref(model.module)
    del model
    gc.collect()
    assert weights() is None


def test_traces_leave_nothing() -> None:
    model = fresh("llama", enable_attention_probs=True)
    for _ in range(30):
        trace_once(model)
    before = held()
    for _ in range(300):
        trace_once(model)
    assert held() - before < 8


@pytest.mark.slow
def test_loads_and_unloads_leave_nothing() -> None:
    tokenizer = tiny_tokenizer()
    for rounds in (30, 300):
        before = held()
        for seed in range(rounds):
            model = StandardizedTransformer(tiny_model("llama", seed=seed), tokenizer=tokenizer, name="tiny")
            assert all(check.passed for check in model.checks)
            del model
    assert held() - before < 16
