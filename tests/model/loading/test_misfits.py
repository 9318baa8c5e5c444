"""Checkpoints whose numbers, sizes or tokens do not fit the model: what is said, and what loads all the same."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from nnterp_mcp.engine.generation import end_ids
from nnterp_mcp.errors import InvalidRequest, UnknownModel
from nnterp_mcp.model import memory
from nnterp_mcp.model.loading.load import Precision, read_model
from nnterp_mcp.model.loading.locate import locate
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.nnterp.activations import get_token_activations
from nnterp_mcp.settings import Settings
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from nnterp_mcp.verification.tiny_configs import HIDDEN
from nnterp_mcp.worker.workbench import Bench

UP, DOWN = "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"


def quiet(message: str) -> None:
    pass


def loaded(folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    return read_model(locate(str(folder), None, folder, False, quiet), Precision(dtype), "cpu", "auto", False, quiet)


def refusal(folder: Path, dtype: str = "float32") -> tuple[str, str]:
    with pytest.raises(UnknownModel) as caught:
        loaded(folder, dtype)
    return caught.value.message.replace(str(folder), "FOLDER"), caught.value.next_step


@pytest.fixture
def copied(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A llama's folder, to be spoilt."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))


def spoil(folder: Path, changes: dict[str, Callable[[torch.Tensor], Any]]) -> None:
    """Changes weights in place."""
    weights = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize("asked", [{"num_hidden_layers": 50_000}, {"vocab_size": 10**9}, {"hidden_size": 10**9}])
def test_a_configuration_that_the_weights_cannot_fill_is_not_built(
    asked: dict[str, int], copied: Path, tiny: Callable[..., Path]
) -> None:
    configure(copied, **asked)
    begun = time.monotonic()

    assert refusal(copied)[0].startswith("the configuration of FOLDER asks for more than ")
    assert time.monotonic() - begun < 20
    loaded(tiny("llama"))  # what watched the load watches no other


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (DOWN, f"layer 2 ({DOWN})"),
        ("model.layers.0.input_layernorm.weight", "layer 0 (model.layers.0.input_layernorm.weight)"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
    ],
)
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (-math.inf, "infinite")])
def test_weights_that_are_not_finite(name: str, where: str, value: float, said: str, copied: Path) -> None:
    spoil(copied, {name: lambda weight: weight.view(-1)[3:5].fill_(value)})
    count = load_file(copied / "model.safetensors")[name].numel()

    message, next_step = refusal(copied)
    assert message == f"2 of the {count} numbers of {where} are {said} in the weights of FOLDER"
    assert next_step


def test_weights_that_float16_cannot_hold(copied: Path) -> None:
    spoil(copied, {DOWN: lambda weight: weight[0].fill_(1e6)})

    assert refusal(copied, "float16") == (
        f"96 of the 6144 numbers of layer 2 ({DOWN}) are infinite in FOLDER as float16, which ends at 65504",
        "Load it with dtype 'bfloat16' or 'float32'.",
    )
    assert loaded(copied, "bfloat16")[0].dtype == torch.bfloat16


def test_states_that_float16_cannot_hold(copied: Path) -> None:
    """Each weight fits; what the layer computes of them does not."""
    spoil(copied, {name: lambda weight: weight.mul_(5e3) for name in (UP, DOWN)})
    model, tokenizer = loaded(copied, "float16")

    with pytest.raises(UnknownModel) as caught:
        StandardizedTransformer(model, tokenizer=tokenizer, name="loud")
    assert re.fullmatch(
        r"the weights of loud are finite, and what layer 2 \(model\.layers\.2\.mlp.*\) computes of them in float16 "
        r"is not",
        caught.value.message,
    )
    assert caught.value.next_step == "Load it with dtype 'bfloat16' or 'float32'."
    model, tokenizer = loaded(copied, "bfloat16")
    assert StandardizedTransformer(model, tokenizer=tokenizer).can("lens")


def with_more_tokens(folder: Path, **special: str) -> Path:
    """Gives the tokenizer tokens that the model does not embed; special ones among them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"extra{number}" for number in range(60)])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


def without_special_tokens(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: value for name, value in settings.items() if name not in ("pad_token", "eos_token")})
    )


@pytest.mark.parametrize(
    ("by", "kind"), [("server", "pad"), ("library", "pad"), ("server", "eos"), ("library", "none")]
)
def test_padding_is_a_token_that_the_model_embeds(by: str, kind: str, copied: Path, tiny: Callable[..., Path]) -> None:
    """A padded batch gives what each prompt gives alone under plain transformers."""
    if kind == "none":
        without_special_tokens(copied)
    else:
        with_more_tokens(copied, pad_token="<P>", **({"eos_token": "<E>"} if kind == "eos" else {}))
        configure(copied, pad_token_id=379, eos_token_id=379)
    if by == "server":
        weights, tokenizer = loaded(copied)
        model = StandardizedTransformer(weights, tokenizer=tokenizer)
    else:
        model = StandardizedTransformer(str(copied))
    plain = LlamaForCausalLM.from_pretrained(tiny("llama"))
    prompts = ["The capital of France is Paris", "Madrid is"]
    with torch.no_grad(), model.trace(prompts):
        logits = nnsight.save(model.logits)

    assert [check.name for check in model.checks if not check.passed] == []
    for row, prompt in enumerate(prompts):
        ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone = plain(input_ids=ids).logits[0]
        assert torch.allclose(logits[row, -ids.shape[1] :], alone, atol=1e-4)


def test_a_token_that_the_model_does_not_embed_is_named(copied: Path) -> None:
    model = StandardizedTransformer(str(with_more_tokens(copied)), name="it")
    bench = Bench("it", Settings())
    bench.place(model)

    assert len(bench.encode(["The capital"])) == 1
    with pytest.raises(InvalidRequest) as caught:
        bench.encode(["The capital", "The extra50"])
    assert caught.value.message == "prompt 1 holds 'extra50', token 349 of the tokenizer, and it embeds tokens 0 to 319"
    with pytest.raises(InvalidRequest, match="holds 'extra50'"):
        get_token_activations(model, ["The extra50"])


def test_ends_that_are_no_tokens_end_no_text(copied: Path) -> None:
    config = json.loads((copied / "generation_config.json").read_text()) | {"eos_token_id": [5, "x", [7], None]}
    (copied / "generation_config.json").write_text(json.dumps(config))
    weights, tokenizer = loaded(copied)

    assert end_ids(StandardizedTransformer(weights, tokenizer=tokenizer)) == {5, tokenizer.eos_token_id}


def test_sizes_that_differ_by_layer() -> None:
    """Gemma 3n lists the width of each layer's MLP."""
    model = tiny_model("gemma3n_text")
    model.config.intermediate_size = [64, 96, 128, 512]
    wrapped = StandardizedTransformer(model, tokenizer=tiny_tokenizer(), check_renaming=False)

    assert memory.of_pass(wrapped, 1, 1, False) == 4 * (8 * HIDDEN + 3 * 512) + 4
