"""Saves tiny random dictionaries with the libraries that define them, and what these make of states.

Run by a Python that has sae-lens, eai-sparsify and dictionary-learning, which the tests do not have themselves:
`python by_libraries.py FOLDER` writes a folder for each, with `expected.safetensors` in it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH, LATENTS, K = 12, 40, 5


def randomize(module: Any) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.randn_like(weight).abs() if "threshold" in name else torch.randn_like(weight))


def expect(folder: Path, states: torch.Tensor, features: torch.Tensor, back: torch.Tensor) -> None:
    tensors = {"states": states, "features": features, "back": back}
    save_file({name: one.detach().contiguous() for name, one in tensors.items()}, folder / "expected.safetensors")


def by_saelens(root: Path, states: torch.Tensor) -> None:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    cases: dict[str, dict[str, Any]] = {
        **{name: {} for name in ("standard", "jumprelu", "gated")},
        "topk": {"k": K},
        "topk-by-norm": {"k": K, "rescale_acts_by_decoder_norm": True},
        "standard-layer_norm": {"normalize_activations": "layer_norm"},
        "jumprelu-constant_norm": {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
        **{
            name: {"d_out": WIDTH, "apply_b_dec_to_input": False}
            for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
        },
    }
    for name, options in cases.items():
        sae_class, config_class = get_sae_class(name.partition("-")[0])
        metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post", hook_name_out="blocks.1.hook_mlp_out")
        sae: Any = sae_class(config_class(d_in=WIDTH, d_sae=LATENTS, metadata=metadata, **options))
        randomize(sae)
        folder = root / f"saelens-{name}"
        sae.save_model(folder)
        expect(folder, states, sae.encode(states), sae(states))


def by_sparsify(root: Path, states: torch.Tensor) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    cases: dict[str, dict[str, Any]] = {
        "sae": {},
        "groupmax": {"activation": "groupmax"},
        "transcoder": {"transcode": True, "skip_connection": True},
    }
    for name, options in cases.items():
        coder = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K, **options))
        randomize(coder)
        folder = root / f"sparsify-{name}" / ("layers.1.mlp" if name == "transcoder" else "layers.1")
        coder.save_to_disk(folder)
        encoded = coder.encode(states)
        features = torch.zeros(len(states), LATENTS).scatter(-1, encoded.top_indices, encoded.top_acts)
        expect(folder.parent, states, features, coder(states).sae_out)


def by_dictionary_learning(root: Path, states: torch.Tensor) -> None:
    found: Any = importlib.util.find_spec("dictionary_learning")  # which itself wants all that it trains with
    file = Path(found.submodule_search_locations[0]) / "dictionary.py"
    spec: Any = importlib.util.spec_from_file_location("dictionary", file)
    dictionary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dictionary)
    for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"):
        made: Any = getattr(dictionary, name)(WIDTH, LATENTS)
        randomize(made)
        folder = root / f"dictionary_learning-{name}"
        folder.mkdir()
        torch.save(made.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "layer": 1}}))
        read: Any = getattr(dictionary, name).from_pretrained(str(folder / "ae.pt"))
        expect(folder, states, read.encode(states), read(states))


if __name__ == "__main__":
    torch.manual_seed(0)
    given = 3 * torch.randn(50, WIDTH)
    target = Path(sys.argv[1])
    by_saelens(target, given)
    by_sparsify(target, given)
    by_dictionary_learning(target, given)
