"""A second load of the same files runs no pass and finds what the first found; any change has it checked again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama import modeling_llama

from nnterp_mcp import StandardizedTransformer
from nnterp_mcp.errors import UnknownModel
from nnterp_mcp.laboratory import Laboratory
from nnterp_mcp.model.structure.anatomy_record import NoRecord, read_anatomy, write_anatomy
from nnterp_mcp.settings import Settings
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))


@pytest.fixture
def load(folder: Path, tmp_path: Path) -> Callable[..., Laboratory]:
    settings = Settings(cache=tmp_path / "cache")
    return lambda **options: Laboratory(folder, settings=settings, **options)


@contextmanager
def passes() -> Generator[list[str]]:
    """The classes of the modules that run meanwhile."""
    ran: list[str] = []
    seen = register_module_forward_pre_hook(lambda module, _: ran.append(type(module).__name__))
    try:
        yield ran
    finally:
        seen.remove()


def runs(load: Callable[..., Laboratory], **options: Any) -> bool:
    with passes() as ran:
        load(**options)
    return "LlamaForCausalLM" in ran


def test_a_second_load_runs_nothing_and_finds_the_same(load: Callable[..., Laboratory]) -> None:
    first = load()
    with passes() as ran:
        second = load()
    assert ran == []
    assert second.card.checks == first.card.checks
    assert (first.card.checked_before, second.card.checked_before) == (False, True)
    assert write_anatomy(second.bench.model.anatomy) == write_anatomy(first.bench.model.anatomy)
    one, other = (lab.logit_lens("The capital of France is") for lab in (first, second))
    assert one == other
    assert first.call("inspect_model") == second.call("inspect_model")


@pytest.mark.parametrize("part", ["weight", "config", "tokenizer", "dtype", "attention", "code"])
def test_any_change_has_the_model_checked_again(
    part: str, folder: Path, load: Callable[..., Laboratory], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    options: dict[str, str] = {}
    if part == "weight":
        _spoil(folder, 1e-6)
    elif part == "code":
        kept = modeling_llama.rotate_half
        monkeypatch.setattr(modeling_llama, "rotate_half", lambda x: kept(x))
    elif part in ("dtype", "attention"):
        options = {part: {"dtype": "bfloat16", "attention": "eager"}[part]}
    else:
        file = folder / ("config.json" if part == "config" else "tokenizer_config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"note": 1}))
    assert runs(load, **options)
    assert not runs(load, **options)


def test_weights_that_are_spoilt_later_are_refused(folder: Path, load: Callable[..., Laboratory]) -> None:
    load()
    times = (folder / "model.safetensors").stat()
    _spoil(folder, float("nan"))
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UnknownModel, match="are NaN in the weights"):
            load()


def _spoil(folder: Path, by: float) -> None:
    """Changes the last number of a matrix, which the sample of the weights leaves out."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][-1, -1] += by
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_what_was_refused_stays_refused(folder: Path, load: Callable[..., Laboratory], monkeypatch: Any) -> None:
    monkeypatch.setattr("nnterp_mcp.model.loading.load_checks.tolerance", lambda logits: -1.0)
    first, second = load(), load()
    assert not first.bench.model.can("lens")
    assert second.bench.model.refusals == first.bench.model.refusals
    assert second.card.checks == first.card.checks


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"anatomy": {"layers": [{"index": 0, "block": 3}]}}'])
def test_a_record_that_cannot_be_read_counts_as_none(
    content: str, load: Callable[..., Laboratory], tmp_path: Path
) -> None:
    load()
    (record,) = (tmp_path / "cache" / "checks").glob("*.json")
    record.write_text(content)
    assert runs(load)
    assert not runs(load)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNTERP_MCP_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("environment")
def test_the_library_remembers_too_and_looks_anew_without_checks(folder: Path) -> None:
    first = StandardizedTransformer(folder)
    with passes() as ran:
        second = StandardizedTransformer(folder)
        assert ran == []
        assert second.checks == first.checks
        assert StandardizedTransformer(folder, check_renaming=False).checks == []
        assert ran.count("LlamaForCausalLM") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_another_process_reads_what_was_remembered(folder: Path) -> None:
    first = StandardizedTransformer(folder)
    script = """
import sys
from torch.nn.modules.module import register_module_forward_pre_hook
from nnterp_mcp import StandardizedTransformer
ran = []
register_module_forward_pre_hook(lambda module, _: ran.append(module))
print(len(StandardizedTransformer(sys.argv[1]).checks), len(ran))
"""
    call = [sys.executable, "-c", script, str(folder)]
    found = subprocess.run(call, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(len(first.checks)), "0"]


def test_an_anatomy_is_the_same_after_writing_and_reading() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    written = write_anatomy(model.anatomy)
    assert read_anatomy(json.loads(json.dumps(written)), model.module) == model.anatomy
    with pytest.raises(NoRecord):
        read_anatomy(written, nn.Linear(1, 1))
