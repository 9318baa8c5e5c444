from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.forward import forward
from nnterp_mcp.errors import Forbidden, NnterpError, UnknownModel, Unsupported
from nnterp_mcp.model.loading.adapters import adapt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts, pad_batch
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.adapters import peft, write_adapter

TEXT = "The capital of France is"
KINDS = {
    "llama": {},
    "llama, rsLoRA": {"use_rslora": True, "r": 4},
    "llama, DoRA": {"use_dora": True},
    "llama, embeddings and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "gpt2": {},
    "gemma2, DoRA": {"use_dora": True},
    "gpt_neox": {},
}


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_what_peft_does_and_leaves_its_base_alone(kind: str, tmp_path: Path) -> None:
    family, options = kind.partition(",")[0], KINDS[kind]
    ids = torch.arange(5, 13)[None]
    folder = write_adapter(tiny_model(family), tmp_path / "one", **options)
    plain = tiny_model(family).eval()
    reference = peft.PeftModel.from_pretrained(tiny_model(family), folder).eval()
    base = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer())
    before = [weight.data_ptr() for weight in base.module.parameters()]
    adapted, _ = adapt(base, folder)
    half, _ = adapt(base, folder, 0.5)

    torch.testing.assert_close(logits(adapted.module, ids), logits(reference, ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(base.module, ids), logits(plain, ids), rtol=0, atol=0)
    merged = copy.deepcopy(reference).merge_and_unload()
    torch.testing.assert_close(logits(adapted.module, ids), logits(merged, ids), rtol=1e-5, atol=1e-4)
    for module in reference.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    torch.testing.assert_close(logits(half.module, ids), logits(reference, ids), rtol=1e-5, atol=1e-5)
    assert all(check.passed for check in adapted.checks)
    assert [weight.data_ptr() for weight in base.module.parameters()] == before
    assert set(before) <= {weight.data_ptr() for weight in adapted.module.parameters()}
    assert len({model.fingerprint for model in (base, adapted, half)}) == 3


def test_the_two_models_do_not_share_their_attention(tmp_path: Path) -> None:
    folder = write_adapter(tiny_model("llama"), tmp_path / "one")
    base = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    adapted, _ = adapt(base, folder)
    with adapted.attending_eagerly():
        assert base.attention == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_head_outputs_projected_by_the_adapted_map_add_up(family: str, tmp_path: Path) -> None:
    """Every standard site names the module with the adapter, not the one within it."""
    folder = write_adapter(tiny_model(family), tmp_path / "one")
    base = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer())
    adapted, card = adapt(base, folder)
    for layer in adapted.anatomy.layers:
        for site in (layer.output_projection, layer.mlp_projection):
            assert site is not None
            assert site.path in card.modules
    prompts = encode_prompts(adapted.tokenizer, ({"text": TEXT},), "tiny", 64, adapted.embedded) if False else None
    del prompts, forward, pad_batch
