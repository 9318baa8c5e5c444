"""Lenses in files: our own layout, and the published ones as TransformerLens and tuned-lens write and read them.

`NNTERP_MCP_LENSES_PYTHON` names a Python that has transformer-lens 4.3 and tuned-lens 0.2, which want other versions of
what this project uses.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.experiments.translated_lens.lens_files import export_lens, read_lens_file, save_lens
from nnterp_mcp.experiments.translated_lens.translation import (
    LensTranslation,
    Provenance,
    hash_unembedding,
    random_like,
    shuffled,
)
from nnterp_mcp.request.lenses import LensMethod
from tests.engine.test_executors import build

PYTHON = os.environ.get("NNTERP_MCP_LENSES_PYTHON", "")
libraries = pytest.mark.skipif(not PYTHON, reason="NNTERP_MCP_LENSES_PYTHON names no Python")

WIDTH, LAYERS = 8, 3


def made(method: LensMethod, layers: int = LAYERS) -> LensTranslation:
    source = torch.Generator().manual_seed(1)
    matrices = {layer: torch.randn(WIDTH, WIDTH, generator=source).half().float() for layer in range(layers)}
    biases = {layer: torch.randn(WIDTH, generator=source) for layer in range(layers)} if method == "tuned" else {}
    return LensTranslation(method, matrices, biases, Provenance(7 if method == "jacobian" else None, None, "tiny"))


def equal(one: LensTranslation, other: LensTranslation, tolerance: float = 0.0) -> bool:
    states = torch.randn(4, WIDTH)
    return one.layers == other.layers and all(
        (one.translate(states, layer) - other.translate(states, layer)).abs().max() <= tolerance for layer in one.layers
    )


@pytest.mark.parametrize("method", ["jacobian", "tuned"])
def test_a_saved_lens_is_the_same_lens(method: LensMethod, tmp_path: Path) -> None:
    lens = made(method)
    save_lens(lens, tmp_path / "own.safetensors")

    found = read_lens_file(tmp_path / "own.safetensors")

    assert equal(found, lens)
    assert (found.method, found.provenance) == (method, lens.provenance)


@pytest.mark.parametrize(("method", "name"), [("jacobian", "lens.pt"), ("tuned", "lens")])
def test_an_exported_lens_is_the_same_lens(method: LensMethod, name: str, tmp_path: Path) -> None:
    lens = made(method)
    export_lens(lens, tmp_path / name)

    found = read_lens_file(tmp_path / name)

    assert equal(found, lens, 1e-6)
    assert (found.provenance.prompts, found.provenance.model) == (lens.provenance.prompts, "tiny")


def test_the_other_published_forms_of_a_jacobian_lens(tmp_path: Path) -> None:
    lens = made("jacobian")
    torch.save({"parameters": {"jacobians": lens.matrices}, "n_prompts": 7}, tmp_path / "nested.pt")
    sums = {layer: 7 * matrix for layer, matrix in lens.matrices.items()}
    torch.save({"jacobian_sum": sums, "n_done": 7, "next_idx": 7}, tmp_path / "checkpoint.pt")

    for name in ("nested.pt", "checkpoint.pt"):
        found = read_lens_file(tmp_path / name)
        assert equal(found, lens, 1e-5)
        assert found.provenance.prompts == 7


def test_bad_files_are_refused(tmp_path: Path) -> None:
    lens = made("jacobian")
    bad = {
        "nan.pt": {"J": {0: torch.full((WIDTH, WIDTH), torch.nan)}},
        "shape.pt": {"J": {0: torch.zeros(WIDTH, WIDTH + 1)}},
        "empty.pt": {"J": {}},
        "other.pt": {"weights": torch.zeros(2)},
        "list.pt": [1, 2],
    }
    for name, held in bad.items():
        torch.save(held, tmp_path / name)
        with pytest.raises(InvalidRequest, match=name):
            read_lens_file(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(subprocess.Popen))
    with pytest.raises(InvalidRequest, match="no lens, or is damaged"):
        read_lens_file(tmp_path / "cut.safetensors")
    with pytest.raises(InvalidRequest, match="no lens, or is damaged"):
        read_lens_file(tmp_path / "missing.safetensors")
    with pytest.raises(Forbidden, match="could run code"):
        read_lens_file(tmp_path / "code.pt")
    with pytest.raises(InvalidRequest, match="gaps"):
        export_lens(LensTranslation("tuned", {1: lens.matrices[1]}, {}), tmp_path / "gaps")


def test_a_lens_of_another_model_is_refused() -> None:
    model = build("llama", Path).model
    square = torch.eye(model.hidden_size)

    LensTranslation("tuned", {0: square}, {}, Provenance(unembedding=hash_unembedding(model))).require(model, [0])
    for lens, layers, says in [
        (made("jacobian"), [0], f"states of width {WIDTH}, and those of this model have {model.hidden_size}"),
        (LensTranslation("jacobian", {9: square}, {}), [9], "has a layer 9, and this model has layers 0 to 3"),
        (LensTranslation("tuned", {0: square}, {}, Provenance(unembedding="0")), [0], "fitted on other weights"),
        (LensTranslation("jacobian", {1: square}, {}), [0, 1, 2, 3], "has no layer 0, 2"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            lens.require(model, layers)


def test_controls_keep_what_they_should() -> None:
    lens = made("jacobian")
    turned, drawn = shuffled(lens), random_like(lens)

    assert all(not torch.equal(turned.matrices[layer], lens.matrices[layer]) for layer in lens.layers)
    for layer in lens.layers:
        own, random = (torch.linalg.svdvals(each.matrices[layer]) for each in (lens, drawn))
        torch.testing.assert_close(own, random, atol=1e-5, rtol=0)
        assert not torch.allclose(drawn.matrices[layer], lens.matrices[layer])


@libraries
def test_the_libraries_read_ours_and_we_read_theirs(tmp_path: Path) -> None:
    jacobian, tuned = made("jacobian"), made("tuned")
    export_lens(jacobian, tmp_path / "ours.pt")
    export_lens(tuned, tmp_path / "ours")
    torch.manual_seed(0)
    states = torch.randn(4, WIDTH)
    torch.save(states, tmp_path / "states.pt")

    script = Path(__file__).with_name("by_libraries.py")
    done = subprocess.run([PYTHON, script, tmp_path], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    theirs = {name: torch.tensor(rows) for name, rows in json.loads(done.stdout).items()}
    for layer in range(LAYERS):
        torch.testing.assert_close(theirs[f"jacobian.{layer}"], jacobian.translate(states, layer), atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs[f"tuned.{layer}"], tuned.translate(states, layer), atol=1e-5, rtol=0)
    assert equal(read_lens_file(tmp_path / "theirs.pt"), jacobian)
    assert equal(read_lens_file(tmp_path / "theirs"), tuned, 1e-6)
