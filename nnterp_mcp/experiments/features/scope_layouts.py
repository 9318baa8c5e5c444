"""Dictionaries as the suites of one laboratory publish them: Gemma Scope 1 and 2, Llama Scope, Qwen-Scope.

What their files leave out is in the names of the folders above them: which site, which layer, how many features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary
from nnterp_mcp.experiments.features.published import Published, assemble
from nnterp_mcp.experiments.features.tensor_files import open_tensors, read_json
from nnterp_mcp.request.feature_sites import FeaturePlace, FeatureSite, place_of

_REPOSITORIES: dict[str, FeatureSite] = {
    "-res": "layers_output",
    "-mlp": "mlps_output",
    "-att": "heads_output",
}
"""Sites of Gemma Scope, by the ends of repositories' names."""

_FOLDERS: dict[str, FeatureSite] = {
    "resid_post": "layers_output",
    "attn_out": "heads_output",
    "mlp_out": "mlps_output",
    "transcoder": "mlps_input",
}
"""Those of Gemma Scope 2, by the names of folders."""


def _layer_in(source: str) -> int | None:
    found = re.findall(r"layer_(\d+)", source)
    return int(found[-1]) if found else None


def _number_in(pattern: str, source: str) -> float | None:
    found = re.search(pattern, source)
    return None if found is None else float(found[1])


def from_gemma_scope(folder: Path, source: str) -> Published:
    """`params.npz` of Gemma Scope: JumpReLU, the site in the repository's name, the layer in the folder's.

    Args:
        folder: The folder.
        source: The whole path or address, with the repository's name.
    """
    layer, transcodes = _layer_in(source), "transcoder" in source
    site: FeatureSite | None = next(
        (_REPOSITORIES[name] for name in _REPOSITORIES if re.search(rf"gemma-scope[\w.-]*{name}", source)), None
    )
    embedding = "embedding" in source
    place = None if layer is None or site is None else FeaturePlace(site, layer)
    if transcodes:
        place = None if layer is None else FeaturePlace("residual_mid_normalized", layer)
    return Published(
        layout="Gemma Scope",
        name=folder.name,
        reads=FeaturePlace("token_embeddings") if embedding else place,
        writes=FeaturePlace("mlps_output", layer) if transcodes else None,
        load=lambda: _load_gemma_scope(folder, transcodes, embedding),
        transcodes=transcodes,
        declared_l0=_number_in(r"average_l0_(\d+)", source),
    )


def _load_gemma_scope(folder: Path, transcodes: bool, embedding: bool) -> Dictionary:
    file = open_tensors(folder / "params.npz")
    made = assemble(
        file,
        file.read("W_enc", "w_enc").T,
        file.read("W_dec", "w_dec"),
        file.read("b_enc"),
        file.read("b_dec"),
        Activation(threshold=file.read("threshold")),
        transcodes=transcodes,
    )
    # Those of the embeddings were trained behind Gemma's factor sqrt(width), which comes after our site.
    return made.scaled(made.encoder.shape[1] ** 0.5) if embedding else made


def from_gemma_scope_2(folder: Path, source: str) -> Published:
    """`params.safetensors`, and mostly `config.json`, of Gemma Scope 2.

    Args:
        folder: The folder.
        source: The whole path or address.
    """
    config: Mapping[str, Any] = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    layer, transcodes = _layer_in(source), "transcoder" in source or "hf_hook_point_out" in config
    site: FeatureSite | None = next((_FOLDERS[name] for name in _FOLDERS if name in source), None)
    told = place_of(str(config.get("hf_hook_point_in", "")))
    out = place_of(str(config.get("hf_hook_point_out", "")))
    l0 = config.get("l0")
    return Published(
        layout="Gemma Scope 2",
        name=folder.name,
        reads=told or (None if layer is None or site is None else FeaturePlace(site, layer)),
        writes=(out or FeaturePlace("mlps_output", layer)) if transcodes else None,
        load=lambda: _load_gemma_scope_2(folder / "params.safetensors", transcodes),
        transcodes=transcodes,
        declared_l0=float(l0) if isinstance(l0, int | float) else None,
        trained_on=config.get("model_name"),
    )


def _load_gemma_scope_2(path: Path, transcodes: bool) -> Dictionary:
    file = open_tensors(path)
    skip = file.find("affine_skip_connection")
    return assemble(
        file,
        file.read("w_enc").T,
        file.read("w_dec"),
        file.read("b_enc"),
        file.read("b_dec"),
        Activation(threshold=file.read("threshold")),
        transcodes=transcodes,
        skip=None if skip is None else skip.T,
    )


def from_llama_scope(folder: Path) -> Published:
    """`hyperparams.json` and `checkpoints/final.safetensors` of Llama Scope: JumpReLU with one threshold for all."""
    config = read_json(folder / "hyperparams.json")
    reads, writes = (place_of(str(config.get(name, ""))) for name in ("hook_point_in", "hook_point_out"))
    transcodes = writes is not None and writes != reads
    return Published(
        layout="Llama Scope",
        name=folder.name,
        reads=reads,
        writes=writes if transcodes else None,
        load=lambda: _load_llama_scope(folder, config, transcodes),
        transcodes=transcodes,
    )


def _load_llama_scope(folder: Path, config: Mapping[str, Any], transcodes: bool) -> Dictionary:
    file = open_tensors(folder / "checkpoints" / "final.safetensors")
    encoder, decoder = file.read("encoder.weight"), file.read("decoder.weight").T
    norms, threshold = config.get("dataset_average_activation_norm") or {}, config.get("jump_relu_threshold")
    if threshold is None or "in" not in norms:
        raise InvalidRequest(
            f"hyperparams.json of {folder.name} lacks jump_relu_threshold or dataset_average_activation_norm."
        )
    into = encoder.shape[1] ** 0.5 / float(norms["in"])
    out = decoder.shape[1] ** 0.5 / float(norms.get("out", norms["in"]))
    made = assemble(
        file,
        encoder,
        decoder,
        file.read("encoder.bias"),
        file.read("decoder.bias"),
        # The threshold is that of states as they are; pre-activations are those of scaled states.
        Activation(threshold=decoder.new_tensor(float(threshold) * into)),
        centred=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        transcodes=transcodes,
    )
    return made.scaled(into, out)


def from_qwen_scope(path: Path, source: str) -> Published:
    """`layerN.sae.pt` of Qwen-Scope: TopK, with k in the repository's name.

    Args:
        path: The file.
        source: The whole path or address, with the repository's name.
    """
    k = _number_in(r"L0_(\d+)", source)
    layer = re.fullmatch(r"layer(\d+)\.sae\.pt", path.name)
    return Published(
        layout="Qwen-Scope",
        name=path.name,
        reads=None if layer is None else FeaturePlace("layers_output", int(layer[1])),
        load=lambda: _load_qwen_scope(path, k),
        declared_l0=k,
    )


def _load_qwen_scope(path: Path, k: float | None) -> Dictionary:
    if k is None:
        raise InvalidRequest(
            f"how many features of {path.name} are active is in its repository's name (…-L0_50), and not in its path."
        )
    file = open_tensors(path)
    return assemble(
        file, file.read("W_enc"), file.read("W_dec").T, file.read("b_enc"), file.read("b_dec"), Activation(k=int(k))
    )
