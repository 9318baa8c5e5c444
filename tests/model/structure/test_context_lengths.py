"""What a configuration says of lengths, and what the check at load sees beyond them and of later tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForCausalLM,
)

from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure import context_lengths as lengths
from nnterp_mcp.model.structure.context_lengths import Lengths, lengths_of
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.verification.full_checks import CAPABILITIES, check_thoroughly
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 320}


def standardize(model: PreTrainedModel, name: str = "tiny", check: bool = True) -> StandardizedTransformer:
    return StandardizedTransformer(model.eval(), tokenizer=tiny_tokenizer(), name=name, check_renaming=check)


def test_lengths_come_from_the_configuration() -> None:
    assert lengths_of(tiny_model("llama")) == Lengths()
    phi = lengths_of(tiny_model("phi3", rope="longrope"))
    assert (phi.switches, phi.own) == ((32,), None)
    assert phi.share(3, 32)
    assert phi.share(33, 60)
    assert not phi.share(32, 33)
    assert not phi.share(29, 30, 4)  # they go beyond at different steps
    assert phi.share(29, 29, 4)
    dynamic = lengths_of(tiny_model("llama", rope="dynamic"))
    assert [dynamic.share(*pair) for pair in ((4, 32), (4, 33), (33, 34), (34, 34))] == [True, False, False, True]
    selecting = lengths_of(tiny_model("deepseek_v32"))
    assert [selecting.share(*pair) for pair in ((4, 32), (33, 33))] == [True, False]
    assert [str(mark) for mark in lengths_of(tiny_model("gemma2")).below(40)] == ["sliding_window 32"]


def test_a_model_reads_as_far_as_its_table_and_its_encoding_reach() -> None:
    sizes: dict[str, Any] = SIZES | {"num_attention_heads": 4, "max_position_embeddings": 66}
    roberta = RobertaForCausalLM(RobertaConfig(**sizes, is_decoder=True, pad_token_id=1))
    assert standardize(roberta, check=False).context == 64
    assert standardize(tiny_model("llama", rope="dynamic"), check=False).context == 128
    assert standardize(tiny_model("gpt2"), check=False).context == 256


def test_a_model_that_reads_in_both_directions_is_named_and_generates_nothing(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SIZES, num_attention_heads=4)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = StandardizedTransformer(str(tmp_path), name="bert")
    found = {check.name: check for check in model.checks}
    assert not found["causal"].passed
    assert "a later token changes earlier logits" in found["causal"].detail
    with pytest.raises(Unsupported, match="bert: a later token changes earlier logits"):
        generate(model, Workload([EncodedPrompt(0, "", [5, 6, 7], [])]), max_new_tokens=2)
    causal = BertLMHeadModel(BertConfig(**SIZES, num_attention_heads=4, is_decoder=True))
    assert all(check.passed for check in standardize(causal).checks)


@pytest.mark.parametrize("model_type", ["cpmant", "xlnet"])
def test_prefixes_read_in_both_directions_are_found_where_no_names_are(model_type: str) -> None:
    model = standardize(tiny_model(model_type))
    assert {check.name for check in model.checks if not check.passed} >= {"names", "causal"}


def test_a_masked_lm_in_memory_is_refused() -> None:
    with pytest.raises(Unsupported, match="BertForMaskedLM is no causal LM"):
        standardize(BertForMaskedLM(BertConfig(**SIZES, num_attention_heads=4)))


def test_what_goes_wrong_only_beyond_a_window_is_found_at_load() -> None:
    config = MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=12)
    model = MistralForCausalLM(config)

    def leak(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + output[:, -1:] if output.shape[1] > 12 else output

    assert all(check.passed for check in standardize(model).checks)
    model.get_submodule("model.layers.0.self_attn.o_proj").register_forward_hook(leak)
    found = standardize(model)
    assert [check.name for check in found.checks if not check.passed] == ["lengths"]
    assert "beyond sliding_window 12" in found.checks[-1].detail
    assert set(found.refusals) == {"batch", "causal"}


def test_what_takes_too_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_AFFORDABLE", {"cpu": 1e6})
    check = standardize(tiny_model("gemma2")).checks[-1]
    assert (check.name, check.passed) == ("lengths", True)
    assert check.detail == "not looked at beyond sliding_window 32: too long for a check"


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1},
        {"num_attention_heads": 4, "num_key_value_heads": 1},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 3},
    ],
)
def test_the_smallest_models_pass_every_measure(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = SIZES | sizes | {"max_position_embeddings": 64, "initializer_range": 0.2}
    model = LlamaForCausalLM(LlamaConfig(**options))
    report = check_thoroughly(standardize(model, check=False))
    assert [(check.name, check.detail) for check in report.checks if not check.passed] == []
    assert [check.name for check in report.checks] == list(CAPABILITIES)
