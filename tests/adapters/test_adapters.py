from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nnterp_mcp import Laboratory
from nnterp_mcp.errors import Forbidden, NnterpError, UnknownModel, Unsupported
from nnterp_mcp.model.loading.adapters import adapt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.adapters import peft, write_adapter
from tests.serving import stdio, text

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


def assert_close_logits(said: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest logit: merged weights are rounded once more, and errors grow with the numbers."""
    assert float((said - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


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
    assert_close_logits(logits(adapted.module, ids), logits(merged, ids))
    for module in reference.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
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


CALLS: dict[str, dict[str, Any]] = {
    "logit_lens": {"prompts": TEXT, "targets": {"answer": "Paris"}},
    "attention_probs": {"prompts": TEXT},
    "attribute": {"prompts": TEXT, "targets": {"answer": "Paris", "wrong": "Rome"}},
    "patch_activations": {"clean": TEXT, "corrupted": "The capital of Spain is", "targets": {"a": "P", "b": "R"}},
    "collect_activations": {"prompts": TEXT, "site": "heads_output", "layers": [1, 2], "positions": ["last"]},
    "run_prompts": {"prompts": [TEXT, "one"], "interventions": [{"op": "zero", "site": "neurons", "layers": 1}]},
    "find_circuit": {"clean": [TEXT], "corrupted": ["The capital of Spain is"], "targets": {"a": "P", "b": "R"}},
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tools_say_of_an_adapter_what_they_say_of_merged_weights(family: str, tmp_path: Path) -> None:
    folder = write_adapter(tiny_model(family), tmp_path / "one")
    merged = peft.PeftModel.from_pretrained(tiny_model(family), folder).merge_and_unload()
    adapted, card = adapt(StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer()), folder)
    one = Laboratory(adapted, handle="tiny")
    other = Laboratory(StandardizedTransformer(merged, tokenizer=tiny_tokenizer()), handle="tiny")
    for layer in adapted.anatomy.layers:
        for site in (layer.output_projection, layer.mlp_projection):
            assert site is not None
            assert site.path in card.modules
    for tool, arguments in CALLS.items():
        said, wanted = (json.loads(lab.call(tool, **arguments).model_dump_json()) for lab in (one, other))
        assert_close(said, wanted, tool)


def assert_close(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one.keys() - {"seconds"}:
            assert_close(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{number}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4), where
    else:
        assert one == other, where


def write(folder: Path, **config: Any) -> Path:
    found = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(found | config))
    return folder


def as_pickle(folder: Path) -> Path:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def incomplete(folder: Path) -> Path:
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], type[NnterpError], str]] = {
    "no adapter": (lambda folder: folder.parent, UnknownModel, "holds no adapter: it has no adapter_config.json"),
    "a pickle": (as_pickle, Forbidden, "has its weights only as pickle"),
    "another kind": (lambda folder: write(folder, peft_type="IA3"), Unsupported, "is an adapter of type 'IA3'"),
    "a kind that changes the base": (
        lambda folder: write(folder, init_lora_weights="pissa"),
        Unsupported,
        "was initialized by 'pissa', which changes the base's own weights",
    ),
    "whole modules": (lambda folder: write(folder, modules_to_save=["lm_head"]), Unsupported, "replaces whole modules"),
    "no configuration": (
        lambda folder: ((folder / "adapter_config.json").write_text("[") and folder) or folder,
        UnknownModel,
        "cannot be read",
    ),
    "a missing factor": (incomplete, UnknownModel, "is missing"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_adapter_of_the_base_is_refused(fault: str, tmp_path: Path) -> None:
    spoil, kind, message = REFUSED[fault]
    folder = spoil(write_adapter(tiny_model("llama"), tmp_path / "one"))
    with pytest.raises(kind, match=re.escape(message)):
        adapt(StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer()), folder)


def test_an_adapter_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tiny_model("llama"), tmp_path / "one", target_modules=["down_proj"])
    gpt2 = StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    with pytest.raises(UnknownModel, match=r"another base: it changes model\.layers\.0\.mlp\.down_proj"):
        adapt(gpt2, folder)
    wide = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    weights = {name: value.repeat(1, 2) for name, value in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UnknownModel, match=r"at model.layers.0.mlp.down_proj it reads \d+ numbers, and this model has"):
        adapt(wide, folder)


def test_two_handles_of_one_server_share_a_process(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny("llama")
    write_adapter(tiny_model("llama"), tmp_path / "persona")
    with stdio() as client:
        loaded = client.call("load_model", model=str(model), adapter=str(tmp_path / "persona"))
        assert not loaded.is_error, text(loaded)
        assert loaded.structured_content["model"] == "tiny-llama+persona"
        assert len(client.workers()) == 1
        said = {
            name: client.call("logit_lens", prompts=TEXT, model=f"tiny-llama{name}").structured_content["table"]["rows"]
            for name in ("", "+persona", "+persona@0", "+persona@0.5", "")
        }
        again = client.call("load_model", model="tiny-llama", adapter=str(tmp_path / "persona"))
        twice = client.call("load_model", model="tiny-llama+persona", adapter=str(tmp_path / "persona"))
        edited = client.call("edit_model", model="tiny-llama+persona", interventions=[{"op": "skip", "layers": [0, 1]}])
        unedited = client.call("logit_lens", prompts=TEXT, model="tiny-llama").structured_content["table"]["rows"]
        gone = client.call("unload_model", model="tiny-llama+persona")
        stale = client.call("logit_lens", prompts=TEXT, model="tiny-llama+persona@0.5")
        alone = client.call("logit_lens", prompts=TEXT)

    assert said[""] == said["+persona@0"] == unedited == alone.structured_content["table"]["rows"]
    assert len({str(said[name]) for name in ("", "+persona", "+persona@0.5")}) == 3
    assert "was loaded already" in text(again)
    assert text(twice).startswith("invalid_request: tiny-llama+persona carries the adapter ")
    assert not edited.is_error
    assert text(gone).startswith("tiny-llama+persona is unloaded: tiny-llama stays loaded without the adapter.")
    assert text(stale).startswith("stale_handle: 'tiny-llama+persona@0.5' is gone")
