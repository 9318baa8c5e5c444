"""Tiny random dictionaries in every published layout, with their arithmetic written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LATENTS, K = 12, 40, 5

_generator = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


@dataclass
class Written:
    """A dictionary that was written to a folder.

    Attributes:
        reads: Where it reads, "site layer"; a transcoder's other end behind an arrow.
        features: What it makes of states, written out.
        back: What it makes of features and the states.
        l0: The number of active features that its files declare.
        source: The name of the repository that the folder stands for.
    """

    reads: str
    features: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    l0: float | None = None
    source: str = "somebody/dictionaries"


def top(pre: Tensor) -> Tensor:
    """All but the K largest of each row are zero, and what is negative is."""
    smallest = pre.sort(dim=-1, descending=True).values[:, K - 1 : K]
    return pre.relu() * (pre >= smallest)


def save_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def weights() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_enc (width, latents), W_dec (latents, width), b_enc, b_dec."""
    return random(WIDTH, LATENTS), random(LATENTS, WIDTH), random(LATENTS), random(WIDTH)


def saelens(folder: Path, architecture: str, norm: str = "none", **more: Any) -> Written:
    enc, dec, b_enc, b_dec = weights()
    gate, mag, scale, threshold, skip = (
        random(LATENTS),
        random(LATENTS),
        random(LATENTS),
        random(LATENTS).abs(),
        random(WIDTH, WIDTH),
    )
    tensors = {"W_enc": enc, "W_dec": dec, "b_dec": b_dec}
    tensors |= {"b_gate": gate, "b_mag": mag, "r_mag": scale} if architecture == "gated" else {"b_enc": b_enc}
    tensors |= {"threshold": threshold} if "jumprelu" in architecture else {}
    tensors |= {"W_skip": skip} if "skip" in architecture else {}
    coded = "transcoder" in architecture
    hooks = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    metadata = hooks if coded else {"hook_name": "blocks.3.hook_resid_post"}
    config = {"architecture": architecture, "normalize_activations": norm, "k": K, "metadata": metadata} | more
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    save_json(folder / "cfg.json", config)
    centred, by_norm = config.get("apply_b_dec_to_input", not coded), config.get("rescale_acts_by_decoder_norm", False)

    def normed(x: Tensor) -> Tensor:
        if norm == "constant_norm_rescale":
            return x * WIDTH**0.5 / x.norm(dim=-1, keepdim=True)
        if norm == "layer_norm":
            return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
        return x

    def features(x: Tensor) -> Tensor:
        read = normed(x) - (b_dec if centred else 0)
        if architecture == "gated":
            return ((read @ enc + gate) > 0) * (read @ (enc * scale.exp()) + mag).relu()
        pre = (read @ enc + b_enc) * (dec.norm(dim=-1) if by_norm else 1)
        if "jumprelu" in architecture:
            return pre.relu() * (pre > threshold)
        return top(pre) if architecture == "topk" else pre.relu()

    def back(f: Tensor, x: Tensor) -> Tensor:
        made = (f / dec.norm(dim=-1) if by_norm else f) @ dec + b_dec
        made = made + (x @ skip.T if "skip" in architecture else 0)
        if coded or norm == "none":
            return made
        if norm == "constant_norm_rescale":
            return made * x.norm(dim=-1, keepdim=True) / WIDTH**0.5
        return made * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)

    reads = "mlps_input 3 -> mlps_output 3" if coded else "layers_output 3"
    return Written(reads, features, back, float(K) if architecture == "topk" else None)


def saelens_before_6(folder: Path, activation: str = "relu") -> Written:
    enc, dec, b_enc, b_dec = weights()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"W_enc": enc, "W_dec": dec, "b_enc": b_enc, "b_dec": b_dec}, folder / "sae_weights.safetensors")
    kwargs = {"k": K} if activation == "topk" else {}
    config = {"hook_point": "blocks.2.attn.hook_z", "activation_fn_str": activation, "activation_fn_kwargs": kwargs}
    save_json(folder / "cfg.json", config | {"normalize_activations": False, "hook_point_head_index": None})

    def features(x: Tensor) -> Tensor:
        pre = (x - b_dec) @ enc + b_enc
        return top(pre) if activation == "topk" else pre.relu()

    declared = float(K) if activation == "topk" else None
    return Written("heads_output 2", features, lambda f, x: f @ dec + b_dec, declared)


def gemma_scope(folder: Path, repository: str, reads: str) -> Written:
    enc, dec, b_enc, b_dec = weights()
    threshold = random(LATENTS).abs()
    names = {"W_enc": enc, "W_dec": dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    inner = folder / "layer_4" / "width_16k" / "average_l0_71"
    inner.mkdir(parents=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in names.items()}
    np.savez(inner / "params.npz", **arrays)

    def features(x: Tensor) -> Tensor:
        pre = x @ enc + b_enc
        return pre.relu() * (pre > threshold)

    return Written(reads, features, lambda f, x: f @ dec + b_dec, 71.0, f"google/gemma-scope-2b-pt-{repository}")


def gemma_scope_2(folder: Path, kind: str, reads: str, affine: bool = False) -> Written:
    enc, dec, b_enc, b_dec = weights()
    threshold, skip = random(LATENTS).abs(), random(WIDTH, WIDTH)
    tensors = {"w_enc": enc, "w_dec": dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    inner = folder / kind / f"layer_4_width_16k_l0_small{'_affine' if affine else ''}"
    inner.mkdir(parents=True)
    save_file(tensors | ({"affine_skip_connection": skip} if affine else {}), inner / "params.safetensors")
    hooks = {"hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output"}
    hooks |= {"hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output"}
    config = hooks if kind == "transcoder" else {"hf_hook_point_in": "model.layers.4.self_attn.o_proj.input"}
    save_json(inner / "config.json", config | {"architecture": "jump_relu", "l0": 20, "model_name": "gemma-v3-1b"})

    def features(x: Tensor) -> Tensor:
        pre = x @ enc + b_enc
        return pre.relu() * (pre > threshold)

    return Written(reads, features, lambda f, x: f @ dec + b_dec + (x @ skip if affine else 0), 20.0)


def llama_scope(folder: Path) -> Written:
    enc, dec, b_enc, b_dec = weights()
    mean, threshold = 2.5, 0.3
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {"encoder.weight": enc.T, "decoder.weight": dec.T, "encoder.bias": b_enc, "decoder.bias": b_dec}
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    config = {"hook_point_in": "blocks.4.hook_mlp_out", "hook_point_out": "blocks.4.hook_mlp_out"}
    norms = {"in": mean, "out": mean}
    save_json(
        folder / "hyperparams.json",
        config | {"jump_relu_threshold": threshold, "dataset_average_activation_norm": norms},
    )
    scale = WIDTH**0.5 / mean

    def features(x: Tensor) -> Tensor:
        pre = x * scale @ enc + b_enc
        return pre.relu() * (pre > threshold * scale)

    return Written("mlps_output 4", features, lambda f, x: (f @ dec + b_dec) / scale)


def qwen_scope(folder: Path) -> Written:
    enc, dec, b_enc, b_dec = weights()
    folder.mkdir(parents=True)
    torch.save({"W_enc": enc.T, "W_dec": dec.T, "b_enc": b_enc, "b_dec": b_dec}, folder / "layer7.sae.pt")
    source = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    return Written("layers_output 7", lambda x: top(x @ enc + b_enc), lambda f, x: f @ dec + b_dec, float(K), source)


def dictionary_learning(folder: Path, kind: str) -> Written:
    enc, dec, b_enc, b_dec = weights()
    gate, mag, scale, threshold = random(LATENTS), random(LATENTS), random(LATENTS), random(LATENTS).abs()
    by_module = {"encoder.weight": enc.T, "decoder.weight": dec.T}
    by_name = {"W_enc": enc, "W_dec": dec, "b_enc": b_enc, "b_dec": b_dec}
    tensors = {
        "AutoEncoder": by_module | {"encoder.bias": b_enc, "bias": b_dec},
        "AutoEncoderNew": by_module | {"encoder.bias": b_enc, "decoder.bias": b_dec},
        "GatedAutoEncoder": by_module | {"decoder_bias": b_dec, "gate_bias": gate, "mag_bias": mag, "r_mag": scale},
        "JumpReluAutoEncoder": by_name | {"threshold": threshold},
        "AutoEncoderTopK": by_module | {"encoder.bias": b_enc, "b_dec": b_dec, "threshold": torch.tensor(-1.0)},
        "BatchTopKSAE": by_module | {"encoder.bias": b_enc, "b_dec": b_dec, "threshold": torch.tensor(0.5)},
        "MatryoshkaBatchTopKSAE": by_name | {"threshold": torch.tensor(0.5), "group_sizes": torch.tensor([10, 30])},
    }[kind]
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "ae.pt")
    k = K if "TopK" in kind else None
    save_json(
        folder / "config.json", {"trainer": {"dict_class": kind, "layer": 5, "k": k, "lm_name": "somebody/model"}}
    )
    plain = kind in ("AutoEncoderNew", "JumpReluAutoEncoder")

    def features(x: Tensor) -> Tensor:
        pre = (x if plain else x - b_dec) @ enc
        if kind == "GatedAutoEncoder":
            return (pre + gate > 0) * (pre * scale.exp() + mag).relu()
        pre = pre + b_enc
        if kind == "JumpReluAutoEncoder":
            return pre.relu() * (pre > threshold)
        if kind == "AutoEncoderTopK":
            return top(pre)
        if "Batch" in kind:
            return pre.relu() * (pre > 0.5)
        return pre.relu() * (dec.norm(dim=-1) if kind == "AutoEncoder" else 1)

    def back(f: Tensor, x: Tensor) -> Tensor:
        return (f / dec.norm(dim=-1) if kind == "AutoEncoder" else f) @ dec + b_dec

    return Written("layers_output 5", features, back, None if k is None else float(k))


def sparsify(folder: Path, transcode: bool = False, activation: str = "topk") -> Written:
    enc, dec, b_enc, b_dec = weights()
    skip = random(WIDTH, WIDTH)
    inner = folder / ("layers.6.mlp" if transcode else "layers.6")
    inner.mkdir(parents=True)
    tensors = {"encoder.weight": enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": dec, "b_dec": b_dec}
    save_file(tensors | ({"W_skip": skip} if transcode else {}), inner / "sae.safetensors")
    config = {"k": K, "d_in": WIDTH, "activation": activation, "skip_connection": transcode, "transcode": transcode}
    save_json(inner / "cfg.json", config)

    def features(x: Tensor) -> Tensor:
        pre = ((x if transcode else x - b_dec) @ enc + b_enc).relu()
        if activation == "topk":
            return top(pre)
        groups = pre.unflatten(-1, (K, LATENTS // K))
        return (groups * (groups == groups.amax(-1, keepdim=True))).flatten(1)

    reads = "mlps_input 6 -> mlps_raw_output 6" if transcode else "layers_output 6"
    return Written(reads, features, lambda f, x: f @ dec + b_dec + (x @ skip.T if transcode else 0), float(K))


def circuit_tracer(folder: Path, threshold: bool) -> Written:
    folder.mkdir(parents=True)
    hooks = "feature_input_hook: ln2.hook_normalized\nfeature_output_hook: hook_mlp_out\nmodel_name: somebody/model\n"
    (folder / "config.yaml").write_text(hooks)
    made = [(*weights(), random(LATENTS).abs(), random(WIDTH, WIDTH)) for _ in range(2)]
    for layer, (enc, dec, b_enc, b_dec, limit, skip) in enumerate(made):
        tensors = {"W_enc": enc.T.contiguous(), "W_dec": dec, "b_enc": b_enc, "b_dec": b_dec}
        more = {"activation_function.threshold": limit, "W_skip": skip} if threshold else {}
        save_file(tensors | more, folder / f"layer_{layer}.safetensors")
    enc, dec, b_enc, b_dec, limit, skip = made[-1]

    def features(x: Tensor) -> Tensor:
        pre = x @ enc + b_enc
        return pre.relu() * (pre > limit) if threshold else pre.relu()

    reads = "residual_mid_normalized 1 -> mlps_output 1"
    return Written(reads, features, lambda f, x: f @ dec + b_dec + (x @ skip.T if threshold else 0))


LAYOUTS: dict[str, Callable[[Path], Written]] = {
    **{
        f"SAELens {architecture}": lambda folder, architecture=architecture: saelens(folder, architecture)
        for architecture in ("standard", "jumprelu", "topk", "gated", "transcoder", "jumprelu_skip_transcoder")
    },
    "SAELens topk by decoder norm": lambda folder: saelens(folder, "topk", rescale_acts_by_decoder_norm=True),
    "SAELens layer_norm": lambda folder: saelens(folder, "standard", "layer_norm", apply_b_dec_to_input=False),
    "SAELens constant_norm": lambda folder: saelens(folder, "jumprelu", "constant_norm_rescale"),
    "SAELens before 6": saelens_before_6,
    "SAELens topk before 6": lambda folder: saelens_before_6(folder, "topk"),
    "Gemma Scope res": lambda folder: gemma_scope(folder, "res", "layers_output 4"),
    "Gemma Scope mlp": lambda folder: gemma_scope(folder, "mlp", "mlps_output 4"),
    "Gemma Scope att": lambda folder: gemma_scope(folder, "att", "heads_output 4"),
    "Gemma Scope transcoder": lambda folder: gemma_scope(
        folder, "transcoders", "residual_mid_normalized 4 -> mlps_output 4"
    ),
    "Gemma Scope 2": lambda folder: gemma_scope_2(folder, "attn_out", "heads_output 4"),
    "Gemma Scope 2 transcoder": lambda folder: gemma_scope_2(
        folder, "transcoder", "mlps_input 4 -> mlps_output 4", affine=True
    ),
    "Llama Scope": llama_scope,
    "Qwen-Scope": qwen_scope,
    **{
        f"dictionary_learning {kind}": lambda folder, kind=kind: dictionary_learning(folder, kind)
        for kind in (
            "AutoEncoder",
            "AutoEncoderNew",
            "GatedAutoEncoder",
            "JumpReluAutoEncoder",
            "AutoEncoderTopK",
            "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE",
        )
    },
    "sparsify": sparsify,
    "sparsify group max": lambda folder: sparsify(folder, activation="groupmax"),
    "sparsify skip transcoder": lambda folder: sparsify(folder, transcode=True),
    "circuit-tracer": lambda folder: circuit_tracer(folder, False),
    "circuit-tracer JumpReLU": lambda folder: circuit_tracer(folder, True),
}
