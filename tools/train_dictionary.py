"""Trains small dictionaries of features: a TopK autoencoder and a skip transcoder of one layer of the default model.

`python -m tools.train_dictionary FOLDER` samples texts from the model itself, trains on the states of their tokens and
writes `FOLDER/sae` in SAELens' layout and `FOLDER/layers.N.mlp` in sparsify's; in minutes on two cores. They are small
and trained on little: good enough to try things out, not to learn of the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from nnterp_mcp.engine.forward import forward
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.sampling import Sampling
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.features.calibration import measure_fit, measure_losses, read_all
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary
from nnterp_mcp.experiments.features.layouts import find_dictionaries
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts, pad_batch
from nnterp_mcp.request.feature_sites import FeaturePlace

Report = Callable[[str], None]

_LIKELY = 500
"""Tokens of which each next one is sampled: sorting the whole vocabulary would take half of the time."""


def sample_texts(model: StandardizedTransformer, count: int, length: int) -> list[EncodedPrompt]:
    """Texts that the model writes at temperature 1, one after each of the tokens that it finds likeliest at a start."""
    tokenizer: Any = model.tokenizer
    begin = EncodedPrompt(0, "", [tokenizer.bos_token_id or 0], [])
    logits = forward(model, pad_batch([begin], model.pad_id, model.device), logits=[(0, 0)]).logits
    assert logits is not None
    first = logits[0].topk(count).indices.tolist()
    starts = [EncodedPrompt(index, "", [*begin.ids, token], []) for index, token in enumerate(first)]
    made = generate(
        model, Workload(starts), max_new_tokens=length - 2, sampling=Sampling(temperature=1.0, top_k=_LIKELY)
    )
    texts = [start.ids + text.ids for start, text in zip(starts, made, strict=True)]
    return [EncodedPrompt(index, "", ids, []) for index, ids in enumerate(texts)]


def train(
    read: Float[Tensor, "token input"],
    written: Float[Tensor, "token output"],
    latents: int,
    k: int,
    steps: int,
    transcodes: bool,
    report: Report,
) -> Dictionary:
    """A TopK autoencoder, or a TopK skip transcoder, by Adam on the mean squared error.

    Args:
        read: What it reads.
        written: What it reconstructs.
        latents: The number of its features.
        k: How many are active at a token.
        steps: Steps of 512 tokens.
        transcodes: Train a transcoder.
        report: Called with the loss now and then.
    """
    sizes = float(read.std()), float(written.std())
    read, written = read / sizes[0], written / sizes[1]
    rows = torch.nn.functional.normalize(torch.randn(latents, read.shape[1]), dim=-1)
    parts: dict[str, Any] = {
        "encoder": rows,
        "decoder": torch.zeros(latents, written.shape[1]) if transcodes else rows,
        "encoder_bias": torch.zeros(latents),
        "decoder_bias": written.mean(0),
    }
    if transcodes:
        parts["skip"] = torch.zeros(written.shape[1], read.shape[1])
    weights: dict[str, Any] = {name: part.clone().requires_grad_() for name, part in parts.items()}
    shape: dict[str, Any] = {"activation": Activation(k=k), "centred": not transcodes, "transcodes": transcodes}
    optimizer = torch.optim.Adam(weights.values(), lr=1e-3)
    for step in range(steps):
        at = torch.randint(len(read), (512,))
        loss = (Dictionary(**weights, **shape).reconstruct(read[at]) - written[at]).square().mean()
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()
        if step % 200 == 0:
            report(f"step {step}: mean squared error {float(loss.detach()):.3f} of the variance over all components")
    made = Dictionary(**{name: weight.detach() for name, weight in weights.items()}, **shape)
    return made.scaled(1 / sizes[0], 1 / sizes[1])


def save_autoencoder(made: Dictionary, folder: Path, layer: int, model: str) -> None:
    """Writes an autoencoder of the residual stream after a layer in SAELens' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": made.encoder.T, "W_dec": made.decoder, "b_enc": made.encoder_bias, "b_dec": made.decoder_bias}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    config = {
        "architecture": "topk",
        "k": made.activation.k,
        "d_in": made.encoder.shape[1],
        "d_sae": made.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": made.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": f"blocks.{layer}.hook_resid_post", "model_name": model},
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=1))


def save_transcoder(made: Dictionary, folder: Path) -> None:
    """Writes a skip transcoder in sparsify's layout; the folder's name says of which MLP it is."""
    folder.mkdir(parents=True, exist_ok=True)
    assert made.skip is not None
    tensors = {
        "encoder.weight": made.encoder,
        "encoder.bias": made.encoder_bias,
        "W_dec": made.decoder,
        "b_dec": made.decoder_bias,
        "W_skip": made.skip,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    config = {"k": made.activation.k, "num_latents": made.latents, "d_in": made.encoder.shape[1]}
    (folder / "cfg.json").write_text(json.dumps(config | {"transcode": True, "skip_connection": True}))


def train_both(
    model: StandardizedTransformer,
    folder: Path,
    layer: int,
    texts: int,
    latents: int,
    k: int,
    steps: int,
    report: Report,
) -> None:
    """Samples, trains both, writes them, and says how they fit on texts that neither saw."""
    torch.manual_seed(0)
    report(f"sampling {texts} texts")
    work = Workload(sample_texts(model, texts, 128))
    places = [
        FeaturePlace("layers_output", layer),
        FeaturePlace("mlps_input", layer),
        FeaturePlace("mlps_output", layer),
    ]
    states = [read_all(model, work, [place])[place] for place in places]
    report(f"training on {len(states[0])} tokens")
    save_autoencoder(train(states[0], states[0], latents, k, steps, False, report), folder / "sae", layer, model.name)
    save_transcoder(train(states[1], states[2], latents, k, steps, True, report), folder / f"layers.{layer}.mlp")
    held = Workload(encode_prompts(model.tokenizer, TEXTS, model.name))
    for name in ("sae", f"layers.{layer}.mlp"):
        (found,) = find_dictionaries(folder / name, str(folder / name))
        made = found.load()
        read, out = (places[0], places[0]) if name == "sae" else (places[1], places[2])
        unseen = read_all(model, held, list(dict.fromkeys([read, out])))
        fit, back = measure_fit(made, unseen[read], unseen[out])
        losses = measure_losses(model, held, out, back)
        recovered = "–" if losses.recovered is None else f"{losses.recovered:.3f}"
        report(
            f"{name}: {len(back)} unseen tokens, L0 {fit.l0:.1f}, FVU {fit.fvu:.3f}, silent {fit.silent:.2f}, loss "
            f"{losses.clean:.3f}, spliced {losses.spliced:.3f}, zeroed {losses.zeroed:.3f}, recovered {recovered}"
        )


def main() -> None:
    """Reads the arguments, and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    model = StandardizedTransformer(given.model, name=given.model, enable_attention_probs=False)
    train_both(model, given.folder, given.layer, given.texts, given.latents, given.k, given.steps, print)


if __name__ == "__main__":
    main()
