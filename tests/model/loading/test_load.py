"""Folders, GGUF files, the built-in model, and everything that is wrong with a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError, OutOfMemory, UnknownModel, Unsupported
from nnterp_mcp.model import memory
from nnterp_mcp.model.loading import locate as locate_module
from nnterp_mcp.model.loading import weights
from nnterp_mcp.model.loading.load import Precision, place, read_model
from nnterp_mcp.model.loading.locate import convert_once, locate
from nnterp_mcp.model.loading.locations import BUILTIN, Located
from nnterp_mcp.settings import Settings
from tests.conftest import FAMILIES


def quiet(message: str) -> None:
    pass


def loaded(folder: Path, dtype: str = "auto", device: str = "cpu", **options: Any) -> tuple[Any, Any]:
    quantization, attention = options.pop("quantization", None), options.pop("attention", "auto")
    return read_model(
        locate(str(folder), None, folder, False, quiet), Precision(dtype, quantization), device, attention, False, quiet
    )


def refusal(kind: type[NnterpError], folder: Path, **options: Any) -> str:
    """The message with which a folder is refused, its path replaced."""
    with pytest.raises(kind) as caught:
        loaded(folder, **options)
    assert caught.value.next_step or kind in (InvalidRequest, Unsupported, UnknownModel)
    return caught.value.message.replace(str(folder), "FOLDER")


@pytest.fixture
def copied(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A llama's folder, to be spoilt, beside one that stays whole."""
    (tmp_path / "whole").symlink_to(tiny("llama"))
    return Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_read_as_it_was_saved(family: str, tiny: Callable[..., Path]) -> None:
    model, tokenizer = loaded(tiny(family))
    saved = AutoModelForCausalLM.from_pretrained(tiny(family)).state_dict()

    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype(dtype: str, copied: Path) -> None:
    assert loaded(copied, dtype)[0].dtype == getattr(torch, dtype)


def test_on_a_cpu_the_default_is_float32(copied: Path) -> None:
    AutoModelForCausalLM.from_pretrained(copied, dtype=torch.bfloat16).save_pretrained(copied)

    assert loaded(copied)[0].dtype == torch.float32


def test_attention(copied: Path) -> None:
    assert loaded(copied, attention="eager")[0].config._attn_implementation == "eager"
    assert loaded(copied)[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_without_a_pad_token_gets_one(side: str, copied: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (copied / name).exists():
            settings = json.loads((copied / name).read_text())
            settings.pop("pad_token", None)
            (copied / name).write_text(json.dumps(settings | {"padding_side": side}))
    _, tokenizer = loaded(copied)

    assert tokenizer.padding_side == side
    assert tokenizer.pad_token == tokenizer.eos_token


def test_places() -> None:
    assert place("cpu") == torch.device("cpu")
    assert place("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("device", ["meta", "xla", "gpu", "", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(InvalidRequest, match=f"device {device!r} is not available: choose one of auto, cpu"):
        place(device)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert refusal(UnknownModel, tmp_path) == "the folder FOLDER holds no model: it has no config.json"


def test_a_folder_without_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()

    assert refusal(UnknownModel, copied) == "FOLDER holds no weights: there is no .safetensors file"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_not_read(name: str, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, copied / name)

    assert refusal(Forbidden, copied) == f"FOLDER has its weights only as pickle ({name}), which can run code"


def test_a_pickle_beside_safetensors_stays_closed(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"no pickle at all")

    assert loaded(copied)[0].config.model_type == "llama"


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (["lm_head.weight"], "lacks 1 of the weights that LlamaForCausalLM needs (lm_head.weight)"),
        (
            ["model.layers.3.mlp", "model.layers.3.self_attn.q_proj"],
            "lacks 4 of the weights that LlamaForCausalLM needs (model.layers.3.mlp.down_proj.weight, "
            "model.layers.3.mlp.gate_proj.weight, model.layers.3.mlp.up_proj.weight, …)",
        ),
    ],
)
def test_missing_weights_are_not_made_up(dropped: list[str], message: str, copied: Path) -> None:
    file = copied / "model.safetensors"
    weights = load_file(file)
    kept = {name: value for name, value in weights.items() if not name.startswith(tuple(dropped))}
    save_file(kept, file, metadata={"format": "pt"})

    assert refusal(UnknownModel, copied) == f"FOLDER {message}, and they would be random"


def test_weights_of_another_shape(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"][:100].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})

    assert refusal(UnknownModel, copied) == (
        "lm_head.weight of FOLDER has the shape (100, 64), and its configuration asks for (320, 64)"
    )


def test_weights_cut_short(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])

    said = refusal(UnknownModel, copied)
    assert said.startswith("FOLDER/model.safetensors is no safetensors file (")
    assert "not fully covered" in said


def test_no_tokenizer(copied: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (copied / name).unlink(missing_ok=True)

    assert refusal(UnknownModel, copied).startswith("FOLDER has no tokenizer that can be read (")


def test_a_configuration_that_is_no_json(copied: Path) -> None:
    (copied / "config.json").write_text("{")

    assert refusal(UnknownModel, copied) == "the config.json of FOLDER is no JSON object, or not there"


def test_an_architecture_that_transformers_does_not_know(copied: Path) -> None:
    (copied / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    message = refusal(Unsupported, copied)

    assert message.startswith("transformers ")
    assert "abacus" in message


def test_an_architecture_that_is_no_causal_language_model(copied: Path) -> None:
    (copied / "config.json").write_text(json.dumps({"model_type": "resnet"}))

    assert refusal(Unsupported, copied) == (
        f"FOLDER is of type 'resnet', of which transformers {transformers.__version__} has no causal language model"
    )


def test_an_encoder_that_its_configuration_does_not_mention(copied: Path) -> None:
    (copied / "config.json").write_text(json.dumps({"model_type": "t5"}))

    assert refusal(Unsupported, copied).startswith("FOLDER is an encoder and a decoder (model_type 't5')")


def test_code_of_the_models_own_is_not_run(copied: Path) -> None:
    ran = copied.parent / "ran"
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "abacus", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")

    assert refusal(Forbidden, copied) == "FOLDER needs code of its own to run, which this server does not allow"
    assert not ran.exists()


def test_quantization_needs_its_library(copied: Path) -> None:
    assert refusal(Unsupported, copied, quantization="8bit") == (
        "quantization '8bit' needs bitsandbytes, which is not installed"
    )


def test_weights_that_do_not_fit_are_not_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 100_000)
    monkeypatch.setattr(weights, "get_max_memory", lambda: {"cpu": 100_000})

    assert refusal(OutOfMemory, copied) == "the weights of FOLDER need 658 kB, and 100 kB are free"


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./no-such", "~nobody-of-this-name/model", "a b", "no-such.gguf", "x" * 5000, "a\0b", " "],
)
def test_a_name_that_is_no_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel) as caught:
        locate(name, None, tmp_path, False, quiet)
    assert caught.value.message.startswith("there is no file or folder ")
    assert len(caught.value.message) < 200
    assert caught.value.next_step == "Give an existing path, a Hub id, or 'smollm2-135m', which is built in."


@pytest.mark.parametrize("name", ["a..b", "a--b", "-a", "a/b-"])
def test_a_name_that_cannot_be_on_the_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel) as caught:
        locate(name, None, tmp_path, False, quiet)
    assert caught.value.message == f"there is no file or folder {name!r}, and it is no Hub id either"


def test_a_file_that_is_no_gguf(copied: Path) -> None:
    with pytest.raises(UnknownModel, match=r"config\.json is no model: files are read when they are \.gguf"):
        locate(str(copied / "config.json"), None, copied, False, quiet)


def test_a_gguf_that_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and then nothing")
    located = locate(str(file), None, tmp_path, False, quiet)

    assert located == Located(tmp_path, str(file), gguf="broken.gguf")
    with pytest.raises(NnterpError, match=r"broken\.gguf"):
        read_model(located, Precision(), "cpu", "auto", False, quiet)


@pytest.mark.slow
def test_the_built_in_model_is_converted_once(tmp_path: Path) -> None:
    """From the packaged GGUF to safetensors: the weights are those that gguf itself reads."""
    said: list[str] = []
    located = locate(BUILTIN, None, tmp_path, False, said.append)
    package = locate_module._builtin_package()
    assert package is not None
    tensors = {tensor.name: tensor for tensor in GGUFReader(package[0]).tensors}
    converted = load_file(located.folder / "model.safetensors")
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.17.mlp.down_proj.weight": "blk.17.ffn_down.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    }

    assert said[0] == "converting the packaged weights, once (about 20 s)"
    assert said[-1] == "writing the converted weights"
    assert [path.name for path in tmp_path.iterdir()] == [located.folder.name]
    for ours, theirs in names.items():
        expected = torch.from_numpy(dequantize(tensors[theirs].data, tensors[theirs].tensor_type).copy())
        assert torch.equal(converted[ours], expected.reshape(converted[ours].shape))

    said.clear()
    assert locate(BUILTIN, None, tmp_path, False, said.append) == located
    assert said == []


@pytest.mark.slow
def test_any_gguf_is_converted_once(tmp_path: Path) -> None:
    package = locate_module._builtin_package()
    assert package is not None
    file, cache, said = tmp_path / "own.gguf", tmp_path / "cache", list[str]()
    file.symlink_to(package[0])
    located = locate(str(file), None, cache, False, quiet)
    converted = convert_once(located, cache, said.append)

    assert said[0] == "converting the GGUF weights, once"
    assert "reading the weights (538 MB)" in said
    assert (converted.origin, converted.gguf) == (str(file), None)
    builtin = locate(BUILTIN, None, Settings().cache, False, quiet)
    ours, known = (load_file(at.folder / "model.safetensors") for at in (converted, builtin))
    assert ours.keys() == known.keys()
    assert all(torch.equal(ours[name], known[name]) for name in ours)

    said.clear()
    assert convert_once(located, cache, said.append) == converted
    assert said == []


def test_a_copy_belongs_to_one_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    found: list[str] = []
    for content, configuration in ((b"a" * 70000, None), (b"a" * 69999 + b"b", None), (b"a" * 70000, "{}")):
        file.write_bytes(content)
        os.utime(file, (1, 1))
        if configuration is not None:
            (tmp_path / "tokenizer_config.json").write_text(configuration)
        found.append(locate_module._identity(file))
    os.utime(file, (2, 2))
    assert len({*found, locate_module._identity(file)}) == 4


def test_a_gguf_is_read_itself_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"GGUF")
    located = Located(tmp_path, "own", gguf="file")
    assert convert_once(located, tmp_path / "file", quiet) == located


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    ready = read_model(locate(BUILTIN, None, Settings().cache, False, quiet), Precision(), "cpu", "auto", False, quiet)
    monkeypatch.setattr(locate_module, "read_model", lambda *args: ready)

    with pytest.raises(UnknownModel, match=r"the converted weights could not be written to .*: Not a directory"):
        locate(BUILTIN, None, tmp_path / "file", False, quiet)
