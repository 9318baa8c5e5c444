"""Transcoders of every layer of a model, as circuit-tracer reads them, and cross-layer transcoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary
from nnterp_mcp.experiments.features.published import Published, assemble
from nnterp_mcp.experiments.features.tensor_files import open_tensors
from nnterp_mcp.request.feature_sites import FeaturePlace, place_of


def from_circuit_tracer(folder: Path) -> list[Published]:
    """`config.yaml` and `layer_N.safetensors` for each layer."""
    config = _read_config(folder)
    return [_published(path, layer, config) for layer, path in _numbered(folder, r"layer_(\d+)\.safetensors").items()]


def _published(path: Path, layer: int, config: Mapping[str, str]) -> Published:
    return Published(
        layout="circuit-tracer",
        name=path.name,
        reads=_place(config, "feature_input_hook", layer),
        writes=_place(config, "feature_output_hook", layer),
        load=lambda: _load_layer(path),
        transcodes=True,
        trained_on=config.get("model_name"),
    )


def _load_layer(path: Path) -> Dictionary:
    file = open_tensors(path)
    return assemble(
        file,
        file.read("W_enc"),
        file.read("W_dec"),
        file.read("b_enc"),
        file.read("b_dec"),
        Activation(threshold=file.find("activation_function.threshold", "threshold")),
        transcodes=True,
        skip=file.find("W_skip"),
    )


def from_cross_layer(folder: Path) -> list[Published]:
    """`config.yaml`, and `W_enc_N.safetensors` and `W_dec_N.safetensors` for each layer that is read."""
    config = _read_config(folder)
    encoders = _numbered(folder, r"W_enc_(\d+)\.safetensors")
    return [
        Published(
            layout="cross-layer transcoder",
            name=path.name,
            reads=_place(config, "feature_input_hook", layer),
            writes=_place(config, "feature_output_hook", layer),
            load=lambda path=path, layer=layer: _load_cross_layer(path, layer),
            transcodes=True,
            trained_on=config.get("model_name"),
            decoders={
                target: lambda path=path, layer=layer, target=target: _read_decoder(path, layer, target)
                for target in encoders
                if target >= layer
            },
        )
        for layer, path in encoders.items()
    ]


def _load_cross_layer(path: Path, layer: int) -> Dictionary:
    """The features of a layer; each decoder row is the sum of what the feature writes to all layers."""
    file, decoders = open_tensors(path), open_tensors(path.with_name(f"W_dec_{layer}.safetensors"))
    return assemble(
        file,
        file.read(f"W_enc_{layer}"),
        decoders.read(f"W_dec_{layer}").sum(1),
        file.read(f"b_enc_{layer}"),
        file.read(f"b_dec_{layer}"),
        Activation(threshold=file.find(f"threshold_{layer}")),
        transcodes=True,
    )


def _read_decoder(path: Path, layer: int, target: int) -> Float[Tensor, "latent output"]:
    """The decoder from the features of one layer to the output of another."""
    return open_tensors(path.with_name(f"W_dec_{layer}.safetensors")).read(f"W_dec_{layer}")[:, target - layer]


def reconstruct_target(
    target: int,
    features: Mapping[int, Float[Tensor, "token latent"]],
    decoders: Mapping[int, Callable[[], Float[Tensor, "latent output"]]],
    bias: Float[Tensor, " output"],
) -> Float[Tensor, "token output"]:
    """A layer's output as a cross-layer transcoder reconstructs it: the sum over features of it and the layers before.

    Args:
        target: The layer.
        features: The features of each layer up to it.
        decoders: For each of these, what reads its decoder to the layer.
        bias: The layer's decoder bias.
    """
    parts = [features[layer] @ decoders[layer]().to(bias) for layer in range(target + 1)]
    return sum(parts, bias)


def _place(config: Mapping[str, str], name: str, layer: int) -> FeaturePlace | None:
    return place_of(f"blocks.{layer}.{config.get(name, '')}")


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """The files whose names have a pattern, by the number in it."""
    found = {path: re.fullmatch(pattern, path.name) for path in folder.iterdir()}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match is not None))


def _read_config(folder: Path) -> Mapping[str, str]:
    """The texts at the top of `config.yaml`; none where there is no such file."""
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"config.yaml of {folder.name} cannot be read.") from error
    found = (re.fullmatch(r"(\w+):\s+(\S.*?)\s*", line) for line in lines)
    return {match[1]: match[2].strip("\"'") for match in found if match is not None}
