"""Translating lenses in files: our own safetensors, and the layouts in which lenses are published."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, Provenance

_KEY = "nnterp_mcp.lens"


def save_lens(lens: LensTranslation, path: Path) -> None:
    """Writes a lens as safetensors, with its provenance in the header."""
    tensors = {f"matrix.{layer}": matrix.contiguous() for layer, matrix in lens.matrices.items()}
    tensors |= {f"bias.{layer}": bias for layer, bias in lens.biases.items()}
    save_file(tensors, path, {_KEY: json.dumps({"method": lens.method, **vars(lens.provenance)})})


def export_lens(lens: LensTranslation, path: Path) -> None:
    """Writes a lens in its method's published layout.

    Args:
        lens: The lens.
        path: Of a Jacobian lens the `.pt` file, whose matrices are in float16; of a tuned lens the folder.

    Raises:
        InvalidRequest: A tuned lens lacks a layer before the last one that it has: that layout has no gaps.
    """
    about = lens.provenance
    if lens.method == "jacobian":
        made = {
            "J": {layer: matrix.half() for layer, matrix in lens.matrices.items()},
            "n_prompts": about.prompts or 0,
            "source_layers": lens.layers,
            "d_model": lens.width,
            "metadata": {name: text for name in ("model", "corpus") if (text := getattr(about, name)) is not None},
        }
        torch.save(made, path)
        return
    if lens.layers != [*range(len(lens.layers))]:
        raise InvalidRequest("a tuned lens is exported with all layers from the first on, and this one has gaps.")
    # The translator of a block reads its input, so that the first reads the embeddings, which no layer made.
    identity = torch.eye(lens.width)
    state = {"0.weight": torch.zeros(lens.width, lens.width), "0.bias": torch.zeros(lens.width)}
    for layer, matrix in lens.matrices.items():
        state[f"{layer + 1}.weight"] = matrix - identity
        state[f"{layer + 1}.bias"] = lens.biases.get(layer, torch.zeros(lens.width))
    path.mkdir(parents=True, exist_ok=True)
    torch.save(state, path / "params.pt")
    config = {
        "base_model_name_or_path": about.model or "",
        "d_model": lens.width,
        "num_hidden_layers": len(lens.layers) + 1,
        "bias": True,
        "unembed_hash": about.unembedding,
        "lens_type": "linear_tuned_lens",
    }
    (path / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def read_lens_file(path: Path) -> LensTranslation:
    """Reads a lens: our own `.safetensors`, a Jacobian lens's `.pt`, or a tuned lens's folder.

    Raises:
        Forbidden: A `.pt` file is a pickle of more than tensors, which could run code.
        InvalidRequest: The file is no lens, is damaged, or holds numbers that are not finite or matrices of other
            shapes.
    """
    try:
        lens = _read(path)
    except pickle.UnpicklingError as error:
        raise Forbidden(
            f"{path.name} does not hold tensors alone: other pickles are not read, for they could run code"
        ) from error
    except NnterpError:  # some of ours are errors of the system too
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise InvalidRequest(f"{path.name} is no lens, or is damaged.") from error
    _check(lens, path.name)
    return lens


def _read(path: Path) -> LensTranslation:
    if path.is_dir():
        return _read_tuned(path)
    if path.suffix == ".safetensors":
        return _read_own(path)
    return _read_jacobian(torch.load(path, map_location="cpu", weights_only=True))


def _read_own(path: Path) -> LensTranslation:
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()[_KEY])
        named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    method = about.pop("method")
    about["hashes"] = tuple(about.get("hashes", ()))
    return LensTranslation(method, _by_layer(named, "matrix."), _by_layer(named, "bias."), Provenance(**about))


def _by_layer(named: Mapping[str, Tensor], prefix: str) -> dict[int, Tensor]:
    return {int(name.removeprefix(prefix)): each for name, each in named.items() if name.startswith(prefix)}


def _read_jacobian(held: Any) -> LensTranslation:
    """The published layout, its variant that nests the matrices, and the sums that a fit leaves as it goes."""
    about = {**(held.get("metadata") or {}), **held}
    prompts = int(about.get("n_prompts") or about.get("n_done") or 0) or None
    if "jacobian_sum" in held:
        matrices, share = held["jacobian_sum"], 1 / held["n_done"]
    else:
        matrices, share = held["J"] if "J" in held else held["parameters"]["jacobians"], 1.0
    return LensTranslation(
        "jacobian",
        {int(layer): matrix.float() * share for layer, matrix in matrices.items()},
        {},
        Provenance(prompts, about.get("corpus"), about.get("model") or about.get("model_name")),
    )


def _read_tuned(folder: Path) -> LensTranslation:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = torch.load(folder / "params.pt", map_location="cpu", weights_only=True)
    translators = range(1, int(config["num_hidden_layers"]))
    identity = torch.eye(int(config["d_model"]))
    return LensTranslation(
        "tuned",
        {at - 1: state[f"{at}.weight"].float() + identity for at in translators},
        {at - 1: state[f"{at}.bias"].float() for at in translators if f"{at}.bias" in state},
        Provenance(None, None, config.get("base_model_name_or_path") or None, config.get("unembed_hash")),
    )


def _check(lens: LensTranslation, name: str) -> None:
    if not lens.matrices:
        raise InvalidRequest(f"{name} has no matrix.")
    for layer, matrix in lens.matrices.items():
        bias = lens.biases.get(layer)
        if matrix.shape != (lens.width, lens.width) or (bias is not None and bias.shape != (lens.width,)):
            raise InvalidRequest(f"{name} has tensors of other shapes at layer {layer} than width {lens.width} needs.")
        if not matrix.isfinite().all() or (bias is not None and not bias.isfinite().all()):
            raise InvalidRequest(f"{name} holds numbers that are not finite at layer {layer}.")
