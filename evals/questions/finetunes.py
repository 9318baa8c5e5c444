"""Adapters of a planted model: what they changed, and a change that is large and does nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from evals.plain import Plain
from evals.planted_adapters import CONTEXT, FIRST, SECOND
from evals.question import LAYER, Choice, Number, Parts, Question, Token

CARRIES, CARRIES_NOT = "it carries the change", "it does not carry the change"
_HALF = 0.5


def _factors(plain: Plain, adapter: str) -> dict[int, Tensor]:
    """The change that an adapter adds to `down_proj` of each layer."""
    found = load_file(Path(plain.model.name_or_path) / adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"
    return {layer: found[name.format(layer, "B")] @ found[name.format(layer, "A")] for layer in range(plain.depth)}


def _adapted(plain: Plain, adapter: str) -> Plain:
    """The model with an adapter added to its weights."""
    adapted = Plain.load(Path(plain.model.name_or_path))
    for layer, change in _factors(plain, adapter).items():
        adapted.model.model.layers[layer].mlp.down_proj.weight += change
    return adapted


def _apart(source: Tensor, target: Tensor) -> float:
    return float((source.exp() * (source - target)).sum())


def _recoveries(plain: Plain, adapted: Plain) -> dict[int, float]:
    """The share of the adapted model's prediction that the base has with the output of one MLP put in, by layer."""
    wanted, own = adapted.log_probs(CONTEXT), plain.log_probs(CONTEXT)
    recovered = dict[int, float]()
    for layer in range(plain.depth):
        (states,) = adapted.read(CONTEXT, [adapted.mlp(layer)])

        def put(old: Tensor, states: Tensor = states) -> Tensor:
            return states

        recovered[layer] = 1 - _apart(wanted, plain.log_probs(CONTEXT, {plain.mlp(layer): put})) / _apart(wanted, own)
    return recovered


def carrier(plain: Plain) -> dict[str, int | float | str]:
    """The layer that recovers most, how much, and the word."""
    adapted = _adapted(plain, FIRST)
    recovered = _recoveries(plain, adapted)
    layer = max(recovered, key=recovered.__getitem__)
    return {
        "layer": layer,
        "recovery": recovered[layer],
        "token": adapted.text(adapted.log_probs(CONTEXT).argmax()),
    }


def largest_change(plain: Plain) -> dict[str, int | float | str]:
    """The layer whose weights changed most, what it recovers, and the verdict."""
    norms = {
        layer: float(torch.linalg.matrix_norm(change) / plain.model.model.layers[layer].mlp.down_proj.weight.norm())
        for layer, change in _factors(plain, SECOND).items()
    }
    layer = max(norms, key=norms.__getitem__)
    recovered = _recoveries(plain, _adapted(plain, SECOND))[layer]
    return {"layer": layer, "recovery": recovered, "verdict": CARRIES if recovered > _HALF else CARRIES_NOT}


_PUT = (
    "If the output of that layer's MLP in the adapted model stands in its place in the base at all positions after "
    f"{CONTEXT!r}, what is 1 - KL(adapted || patched base) / KL(adapted || base) of the next-token distributions?"
)

QUESTIONS = (
    Question(
        "finetune-place",
        f"The folder {FIRST!r} below the model's holds a LoRA adapter of it. The MLP of which layer carries what the "
        f"adapter changed after {CONTEXT!r} best? {_PUT} And which token does the adapted model predict there?",
        Parts({"layer": LAYER, "recovery": Number(absolute=0.02), "token": Token()}),
        carrier,
        "planted-tuned",
    ),
    Question(
        "finetune-largest-weights",
        f"The folder {SECOND!r} below the model's holds a LoRA adapter of it. In which layer is its change of "
        f"down_proj largest beside the norm of that weight? {_PUT} Does that layer's MLP carry the change (more than "
        "half)?",
        Parts({"layer": LAYER, "recovery": Number(absolute=0.02), "verdict": Choice((CARRIES, CARRIES_NOT))}),
        largest_change,
        "planted-tuned",
    ),
)
