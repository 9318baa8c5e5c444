from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nnterp_mcp.errors import Forbidden, InvalidRequest, Unsupported
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.layouts import find_dictionaries
from nnterp_mcp.experiments.features.transcoder_sets import reconstruct_target
from tests.experiments.features.layouts import LATENTS, LAYOUTS, WIDTH, random, saelens, save_json, sparsify

STATES = 3 * random(30, WIDTH)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_its_formula_says(layout: str, tmp_path: Path) -> None:
    written = LAYOUTS[layout](tmp_path / "a")
    found = find_dictionaries(tmp_path / "a", written.source)[-1]
    made = found.load()
    features = made.encode(STATES)
    ends = [f"{place.site} {place.layer}" for place in (found.reads, found.writes) if place is not None]

    expected = written.features(STATES)
    assert " -> ".join(ends) == written.reads
    assert found.declared_l0 == written.l0
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(made.decode(features, STATES), written.back(expected, STATES), atol=2e-4, rtol=1e-5)


def test_the_identity_dictionary_reconstructs_exactly() -> None:
    eye = torch.eye(WIDTH)
    signed = torch.cat([eye, -eye])
    made = Dictionary(signed, signed, torch.zeros(2 * WIDTH), torch.zeros(WIDTH))

    assert torch.equal(made.reconstruct(STATES), STATES)


@pytest.mark.parametrize("centred", [False, True])
def test_a_folded_factor_is_a_factor_of_the_states(centred: bool) -> None:
    made = Dictionary(random(LATENTS, WIDTH), random(LATENTS, WIDTH), random(LATENTS), random(WIDTH), centred=centred)

    torch.testing.assert_close(made.scaled(0.5, 3.0).encode(STATES), made.encode(STATES * 0.5), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        made.scaled(0.5, 3.0).reconstruct(STATES), made.reconstruct(STATES * 0.5) / 3, atol=1e-4, rtol=1e-5
    )


def test_a_cross_layer_transcoder_writes_to_its_layer_and_those_behind(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
    encoders, decoders, biases, b_dec = (
        [random(*shape) for _ in range(3)] for shape in ((LATENTS, WIDTH), (LATENTS, 3, WIDTH), (LATENTS,), (WIDTH,))
    )
    for layer in range(3):
        tensors = {"W_enc": encoders[layer], "b_enc": biases[layer], "b_dec": b_dec[layer]}
        save_file({f"{name}_{layer}": one for name, one in tensors.items()}, tmp_path / f"W_enc_{layer}.safetensors")
        written = {f"W_dec_{layer}": decoders[layer][:, : 3 - layer].contiguous()}
        save_file(written, tmp_path / f"W_dec_{layer}.safetensors")
    found = find_dictionaries(tmp_path, "somebody/clt")
    inputs = [random(7, WIDTH) for _ in range(3)]
    features = {layer: found[layer].load().encode(inputs[layer]) for layer in range(3)}

    assert [str(one.reads) for one in found] == [f"residual_mid of layer {layer}" for layer in range(3)]
    made = reconstruct_target(2, features, {one.layer: one.decoders[2] for one in found}, found[2].load().decoder_bias)  # type: ignore[misc]
    written_out = [
        (inputs[layer] @ encoders[layer].T + biases[layer]).relu() @ decoders[layer][:, 2 - layer] for layer in range(3)
    ]
    torch.testing.assert_close(made, sum(written_out) + b_dec[2], atol=1e-4, rtol=1e-5)
    with pytest.raises(KeyError):
        found[2].decoders[1]


def test_tensors_are_not_read_until_they_are_asked_for(tmp_path: Path) -> None:
    sparsify(tmp_path)
    path = tmp_path / "layers.6" / "sae.safetensors"
    path.write_bytes(b"nothing")
    (found,) = find_dictionaries(tmp_path, "somebody/dictionaries")

    with pytest.raises(InvalidRequest, match=r"sae\.safetensors is damaged"):
        found.load()


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({name: one for name, one in tensors.items() if name != "W_dec"}, folder / "sae_weights.safetensors")


def _with_nan(folder: Path) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_enc"][0, 0] = torch.nan
    save_file(tensors, folder / "sae_weights.safetensors")


def _with_whole_numbers(folder: Path) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"W_dec": tensors["W_dec"].int()}, folder / "sae_weights.safetensors")


def _with_another_width(folder: Path) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"b_dec": random(WIDTH + 1)}, folder / "sae_weights.safetensors")


def _of_another_kind(folder: Path) -> None:
    save_json(folder / "cfg.json", {"architecture": "temporal"})


def _with_no_configuration(folder: Path) -> None:
    (folder / "cfg.json").write_text("[")


BAD: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no decoder": (_without_a_tensor, InvalidRequest, "no tensor W_dec: it has W_enc, b_dec, b_enc"),
    "not a number": (
        _with_nan,
        InvalidRequest,
        "the tensor W_enc of sae_weights.safetensors holds numbers that are not finite",
    ),
    "whole numbers": (
        _with_whole_numbers,
        InvalidRequest,
        "the tensor W_dec of sae_weights.safetensors holds int32, not floating-point numbers",
    ),
    "shapes": (_with_another_width, InvalidRequest, "decoder's bias of sae_weights.safetensors has the shape"),
    "architecture": (_of_another_kind, Unsupported, "architecture 'temporal', which is not read"),
    "configuration": (_with_no_configuration, InvalidRequest, "cfg.json cannot be read"),
}


@pytest.mark.parametrize("fault", BAD)
def test_files_that_cannot_be_read_are_refused_by_name(fault: str, tmp_path: Path) -> None:
    saelens(tmp_path, "standard")
    spoil, error, said = BAD[fault]
    spoil(tmp_path)

    with pytest.raises(error, match=said):
        find_dictionaries(tmp_path, "somebody/dictionaries")[0].load()


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    (tmp_path / "pt").mkdir()
    (tmp_path / "npz" / "layer_3").mkdir(parents=True)
    torch.save({"W_enc": Path}, tmp_path / "pt" / "layer1.sae.pt")
    np.savez(tmp_path / "npz" / "layer_3" / "params.npz", W_enc=np.array([Path], dtype=object))

    for kind in ("pt", "npz"):
        (found,) = find_dictionaries(tmp_path / kind, "Qwen/SAE-L0_5")
        with pytest.raises(Forbidden, match="pickle"):
            found.load()


def test_a_damaged_file_is_not_called_a_pickle(tmp_path: Path) -> None:
    file = tmp_path / "layer1.sae.pt"
    torch.save({"W_enc": torch.zeros(2)}, file)
    for damaged in (b"no tensors at all", b"", file.read_bytes()[:200], bytes(64)):
        file.write_bytes(damaged)
        with pytest.raises(InvalidRequest, match=r"layer1\.sae\.pt is damaged"):
            find_dictionaries(tmp_path, "Qwen/SAE-L0_5")[0].load()


def test_a_folder_without_dictionaries_and_one_with_two_of_a_layer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    saelens(tmp_path / "two" / "a", "standard")
    saelens(tmp_path / "two" / "b", "topk")

    with pytest.raises(InvalidRequest, match="no dictionary that can be read"):
        find_dictionaries(tmp_path / "empty", "somebody/empty")
    with pytest.raises(InvalidRequest, match="several dictionaries of layer 3: a and b"):
        find_dictionaries(tmp_path / "two", "somebody/two")
