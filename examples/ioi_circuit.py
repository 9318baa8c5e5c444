"""Finds the circuit of indirect object identification in smollm2-135m in six calls, and checks it with plain hooks.

"When Mary and John went to the store, John gave a drink to" is completed by the name that is not repeated. Direct
attribution finds the heads that write the answer, patching those that matter at the last token and at the repeated
name, path patching those that tell the writers where to look. Then the heads are tested together: alone, by their
complement, and against random sets of as many.

Run it with `python examples/ioi_circuit.py` once the package is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import torch
from client import ask, laboratory
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.model.loading.locate import locate
from nnterp_mcp.settings import Settings

NAMES = ("Mary", "John", "Tom", "James", "Anna", "David")
SCENES = (("store", "drink"), ("park", "ball"), ("school", "book"), ("office", "letter"))
CIRCUIT = {
    "writes the indirect object": ("L23H0", "L23H3", "L29H1"),
    "writes against it": ("L24H4", "L29H0"),
    "tells these where to look": ("L19H2", "L20H0"),
    "finds the name that is repeated": ("L16H0", "L17H4"),
}
HEADS = [head for heads in CIRCUIT.values() for head in heads]
REPEATED = 9
"""The position of the name that is repeated."""


def prompt(first: str, second: str, giver: str, at: int) -> str:
    """A story of two names, one of which, or a third, gives something."""
    place, thing = SCENES[at % len(SCENES)]
    return f"When {first} and {second} went to the {place}, {giver} gave a {thing} to"


def stories() -> tuple[list[str], list[str], list[str], list[dict[str, str]]]:
    """Clean prompts; those in which the other name is repeated; those without a repeated name; the names."""
    clean, swapped, untold, targets = list[str](), list[str](), list[str](), list[dict[str, str]]()
    for at, name in enumerate(NAMES):
        subject, *others = (NAMES[(at + step) % len(NAMES)] for step in (1, 2, 3, 5))
        first, second = (name, subject) if at % 2 else (subject, name)
        clean.append(prompt(first, second, subject, at))
        swapped.append(prompt(first, second, name, at))
        untold.append(prompt(*others, at))
        targets.append({"indirect object": name, "subject": subject})
    return clean, swapped, untold, targets


async def main() -> None:
    clean, swapped, untold, targets = stories()
    pairs: dict[str, Any] = {"clean": clean, "corrupted": swapped, "targets": targets, "direction": "noising"}
    ablated: dict[str, Any] = {"clean": clean, "corrupted": {"ablate": "mean", "over": untold}, "targets": targets}
    async with laboratory() as client:
        await ask(client, "attribute", prompts=clean, targets=targets, by="head")
        await ask(client, "patch_activations", **pairs, heads="all", positions="last", control=True)
        ends = {"site": "queries", "layers": 23, "heads": [0, 3]}
        await ask(client, "patch_activations", **pairs, heads="all", layers="10:23", positions="last", receivers=ends)
        await ask(client, "patch_activations", **pairs, heads="all", layers="8:20", positions=REPEATED)
        found = await ask(client, "patch_activations", **ablated, cells=HEADS, complement=True)
        without = [head for head in HEADS if head not in CIRCUIT["writes against it"]]
        await ask(client, "patch_activations", **ablated, cells=without, complement=True)
    shown = {row[0]: row[1] for row in found["table"]["rows"]}
    compare(clean, untold, targets, [shown["faithfulness"], shown["completeness"]])


@torch.no_grad()
def compare(clean: Sequence[str], untold: Sequence[str], targets: Sequence[dict[str, str]], found: list[float]) -> None:
    """Measures the circuit of nine heads again by forward passes with plain hooks, a prompt at a time in float32."""
    folder = locate("smollm2-135m", None, Settings().cache, False, lambda message: None).folder
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    count, depth = model.config.num_attention_heads, model.config.num_hidden_layers
    outputs = [layer.self_attn.o_proj for layer in model.model.layers]
    every = {(layer, head) for layer in range(depth) for head in range(count)}
    chosen = {(int(layer), int(head)) for layer, head in (name[1:].split("H") for name in HEADS)}
    means: dict[int, torch.Tensor] = {}

    def logits(text: str, hooks: Sequence[Any]) -> torch.Tensor:
        handles = [output.register_forward_pre_hook(hook) for output, hook in zip(outputs, hooks, strict=True)]
        found = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
        for handle in handles:
            handle.remove()
        return found

    def adding(layer: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            means[layer] = means.get(layer, 0) + args[0] / len(untold)

        return hook

    def replacing(layer: int, intact: set[tuple[int, int]]) -> Any:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            mixed = args[0].unflatten(-1, (count, -1)).clone()
            lost = [head for head in range(count) if (layer, head) not in intact]
            mixed[:, :, lost] = means[layer].unflatten(-1, (count, -1))[:, :, lost]
            return (mixed.flatten(-2),)

        return hook

    def metric(intact: set[tuple[int, int]]) -> float:
        differences: list[float] = []
        for text, names in zip(clean, targets, strict=True):
            last = logits(text, [replacing(layer, intact) for layer in range(depth)])
            told, other = ([tokenizer(start + name)["input_ids"][0] for start in ("", " ")] for name in names.values())
            differences.append(float(last[told].logsumexp(0) - last[other].logsumexp(0)))
        return sum(differences) / len(differences)

    for text in untold:
        logits(text, [adding(layer) for layer in range(depth)])
    none, whole = metric(set()), metric(every)
    again = [(metric(intact) - none) / (whole - none) for intact in (chosen, every - chosen)]
    print(f"Faithfulness and completeness by plain hooks: {again[0]:.3g} and {again[1]:.3g}.")
    print(f"By the tool: {found[0]} and {found[1]}.")


if __name__ == "__main__":
    anyio.run(main)
