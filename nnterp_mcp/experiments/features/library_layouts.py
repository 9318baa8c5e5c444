"""Dictionaries as the libraries that train them save them: SAELens, sparsify, dictionary_learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary, Normalization, fold_decoder_norms
from nnterp_mcp.experiments.features.published import Published, assemble
from nnterp_mcp.experiments.features.tensor_files import TensorFile, open_tensors, read_json
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.feature_sites import FeaturePlace, FeatureSite, place_of

_NORMALIZATIONS: dict[Any, Normalization] = {
    None: "none",
    False: "none",
    True: "expected_norm",
    "none": "none",
    "expected_average_only_in": "expected_norm",
    "constant_norm_rescale": "constant_norm",
    "layer_norm": "layer_norm",
}

_SAELENS = ("standard", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "gated")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def from_saelens(folder: Path) -> Published:
    """`cfg.json` and `sae_weights.safetensors`, as SAELens saves them, before its version 6 and since."""
    config = read_json(folder / "cfg.json")
    told = config | config.get("metadata", {})
    architecture = config.get("architecture", "standard")
    if architecture not in (*_SAELENS, *_TRANSCODERS):
        raise Unsupported(
            f"{folder.name} is of SAELens' architecture {shown(architecture)}, which is not read: "
            f"{', '.join((*_SAELENS, *_TRANSCODERS))} are."
        )
    if told.get("hook_head_index") is not None:
        raise Unsupported(f"{folder.name} reads head {told['hook_head_index']} alone, which is not read.")
    hook = _place(told, "hf_hook_name", "hook_name", "hook_point")
    out = _place(told, "hf_hook_name_out", "hook_name_out")
    given = told.get("activation_fn_kwargs") or {}
    k = config.get("k", given.get("k")) if architecture == "topk" or _activation(config) == "topk" else None
    return Published(
        layout="SAELens",
        name=folder.name,
        reads=hook,
        writes=out,
        load=lambda: _load_saelens(folder, config, None if k is None else int(k)),
        transcodes=architecture in _TRANSCODERS,
        declared_l0=None if k is None else float(k),
        trained_on=told.get("model_name"),
        neuronpedia=told.get("neuronpedia_id"),
    )


def _place(config: Mapping[str, Any], *names: str) -> FeaturePlace | None:
    """The place that the first of several fields names which is known: a module's name says more than a hook's."""
    found = (place_of(str(config[name])) for name in names if config.get(name))
    return next((place for place in found if place is not None), None)


def _activation(config: Mapping[str, Any]) -> str:
    return str(config.get("activation_fn", config.get("activation_fn_str", "relu")))


def _load_saelens(folder: Path, config: Mapping[str, Any], k: int | None) -> Dictionary:
    file = open_tensors(folder / "sae_weights.safetensors")
    architecture, asked = config.get("architecture", "standard"), config.get("normalize_activations")
    if asked not in _NORMALIZATIONS:
        raise Unsupported(f"{folder.name} normalizes its input by {shown(asked)}, which is not read.")
    if k is None and _activation(config) not in ("relu", "topk"):
        raise Unsupported(
            f"{folder.name} has the activation function {shown(_activation(config))}: relu and topk are read."
        )
    scale = file.find("scaling_factor")
    decoder = file.read("W_dec") if scale is None else file.read("W_dec") * scale[:, None]
    gated = architecture == "gated"
    made = assemble(
        file,
        file.read("W_enc").T,
        decoder,
        None if gated else file.read("b_enc"),
        file.read("b_dec"),
        Activation(
            threshold=_threshold(file) if "jumprelu" in architecture or "batchtopk" in architecture else None,
            k=k,
            gate_bias=file.read("b_gate") if gated else None,
            magnitude_bias=file.read("b_mag") if gated else None,
            magnitude_log_scale=file.read("r_mag") if gated else None,
        ),
        centred=bool(config.get("apply_b_dec_to_input", architecture not in _TRANSCODERS)),
        normalization=_NORMALIZATIONS[asked],
        transcodes=architecture in _TRANSCODERS,
        skip=file.read("W_skip") if "skip" in architecture else None,
    )
    return fold_decoder_norms(made) if config.get("rescale_acts_by_decoder_norm", False) else made


def _threshold(file: TensorFile) -> Any:
    logarithm = file.find("log_threshold")
    return file.read("threshold", "topk_threshold") if logarithm is None else logarithm.exp()


def from_sparsify(folder: Path) -> Published:
    """`cfg.json` and `sae.safetensors` in a folder that is named by the module, as EleutherAI's sparsify saves them."""
    config = read_json(folder / "cfg.json")
    transcodes = bool(config.get("transcode", False))
    module = place_of(folder.name)
    if config.get("signed", False):
        raise Unsupported(f"{folder.name} keeps the largest features of either sign, which are not read.")
    reads = FeaturePlace("mlps_input", module.layer) if transcodes and module is not None else module
    return Published(
        layout="sparsify",
        name=folder.name,
        reads=reads,
        writes=module if transcodes else None,
        load=lambda: _load_sparsify(folder, config, transcodes),
        transcodes=transcodes,
        declared_l0=float(_number(config, "k", folder)),
    )


def _load_sparsify(folder: Path, config: Mapping[str, Any], transcodes: bool) -> Dictionary:
    file = open_tensors(folder / "sae.safetensors")
    return assemble(
        file,
        file.read("encoder.weight"),
        file.read("W_dec"),
        file.find("encoder.bias"),
        file.read("b_dec"),
        Activation(k=_number(config, "k", folder), grouped=config.get("activation", "topk") == "groupmax"),
        centred=not transcodes,
        transcodes=transcodes,
        skip=file.find("W_skip"),
    )


_CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "threshold",
    "MatryoshkaBatchTopKSAE": "threshold",
}
"""The classes of dictionary_learning."""

_OUTPUTS: dict[str, FeatureSite] = {
    "resid_post": "layers_output",
    "resid": "layers_output",
    "attn": "attentions_raw_output",
    "mlp": "mlps_raw_output",
}


def from_dictionary_learning(folder: Path) -> Published:
    """`ae.pt` and `config.json`, as dictionary_learning saves them."""
    trainer = read_json(folder / "config.json").get("trainer", {})
    kind, layer = trainer.get("dict_class"), trainer.get("layer")
    if kind not in _CLASSES:
        raise Unsupported(f"{folder.name} is a {shown(kind)} of dictionary_learning: {', '.join(_CLASSES)} are read.")
    module = str(trainer.get("submodule_name") or "resid_post")
    site: FeatureSite | None = next((site for name, site in _OUTPUTS.items() if module.startswith(name)), None)
    return Published(
        layout="dictionary_learning",
        name=folder.name,
        reads=None if layer is None or site is None else FeaturePlace(site, int(layer)),
        load=lambda: _load_dictionary_learning(folder, kind, trainer),
        declared_l0=float(trainer["k"]) if trainer.get("k") is not None else None,
        trained_on=trainer.get("lm_name"),
    )


def _load_dictionary_learning(folder: Path, kind: str, trainer: Mapping[str, Any]) -> Dictionary:
    file, form = open_tensors(folder / "ae.pt"), _CLASSES[kind]
    gated = form == "gated"
    made = assemble(
        file,
        file.read("W_enc").T if "W_enc" in file else file.read("encoder.weight"),
        file.read("W_dec") if "W_dec" in file else file.read("decoder.weight").T,
        None if gated else file.read("b_enc", "encoder.bias"),
        file.read("b_dec", "bias", "decoder_bias", "decoder.bias"),
        Activation(
            threshold=file.read("threshold") if form in ("jumprelu", "threshold") else None,
            k=_number(trainer, "k", folder) if form == "topk" else None,
            gate_bias=file.read("gate_bias") if gated else None,
            magnitude_bias=file.read("mag_bias") if gated else None,
            magnitude_log_scale=file.read("r_mag") if gated else None,
        ),
        centred=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
    )
    return fold_decoder_norms(made) if kind == "AutoEncoder" else made  # as the library does when it reads one


def _number(config: Mapping[str, Any], name: str, folder: Path) -> int:
    found = config.get(name)
    if not isinstance(found, int) or found < 1:
        raise InvalidRequest(f"the configuration of {folder.name} has no {name} that can be read: {shown(found)}.")
    return found
