"""Connects a client to a server of its own and asks where in smollm2-135m capitals are recalled, layer by position.

Pairs of prompts of equal length, "The capital of France is" beside "The capital of Italy is" and so on: all cells of
the grid for all pairs in one call, with random cells beside; MLPs in windows of five layers, as in causal tracing. At
the end a fifth of the grid of the first pair again, one forward pass with a plain hook for each cell: the numbers and
the time.

Run it with `python examples/fact_recall.py` once the package is installed.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import torch
from client import answer, ask, laboratory
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.model.loading.locate import locate
from nnterp_mcp.settings import Settings

PROMPT = "The capital of {} is"
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Russia": "Moscow",
    "England": "London",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Greece": "Athens",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Cuba": "Havana",
    "Chile": "Santiago",
    "Canada": "Ottawa",
    "Hungary": "Budapest",
    "Denmark": "Copenhagen",
    "Syria": "Damascus",
    "Kenya": "Nairobi",
    "Scotland": "Edinburgh",
    "Romania": "Bucharest",
    "Netherlands": "Amsterdam",
}
"""Countries of one token each, whose capitals begin with different tokens and are what the model says first."""


async def main() -> None:
    async with laboratory() as client:
        await ask(client, "patch_activations", control=True, **pairs(len(CAPITALS)))
        await ask(client, "patch_activations", sites="mlps_output", window=5, **pairs(4))
        begun = time.perf_counter()
        grid = await ask(client, "patch_activations", **pairs(1))
        seconds = time.perf_counter() - begun
        rows = await answer(client, "read_run", run_id=grid["run_id"], part="metric", limit=30, format="json")
    compare([row[-1] for row in rows.structured_content["table"]["rows"]], seconds)


def pairs(count: int) -> dict[str, Any]:
    """The first so many pairs: each country beside the next, with its capital against the next one's."""
    beside = list(zip(CAPITALS, [*list(CAPITALS)[1:], *CAPITALS], strict=False))[:count]
    return {
        "clean": [PROMPT.format(country) for country, _ in beside],
        "corrupted": [PROMPT.format(other) for _, other in beside],
        "targets": [{"answer": CAPITALS[country], "wrong": CAPITALS[other]} for country, other in beside],
    }


@torch.no_grad()
def compare(found: list[list[float]], seconds: float) -> None:
    """Patches every fifth layer of the first pair again, with one forward pass and one plain hook for each cell."""
    folder = locate("smollm2-135m", None, Settings().cache, False, lambda message: None).folder
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (country, answer), (other, wrong) = list(CAPITALS.items())[:2]
    clean, corrupted = (tokenizer(PROMPT.format(name), return_tensors="pt")["input_ids"] for name in (country, other))
    answers, wrongs = ([tokenizer(start + name)["input_ids"][0] for start in ("", " ")] for name in (answer, wrong))
    layers = model.model.layers
    states: dict[int, torch.Tensor] = {}
    kept = [
        layer.register_forward_hook(lambda _, args, output, at=at: states.update({at: output}))
        for at, layer in enumerate(layers)
    ]
    model(clean)
    for hook in kept:
        hook.remove()

    def patched(layer: int, position: int) -> float:
        def put(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            output[:, position] = states[layer][:, position]
            return output

        hook = layers[layer].register_forward_hook(put)
        logits = model(corrupted).logits[0, -1]
        hook.remove()
        return float(logits[answers].logsumexp(0) - logits[wrongs].logsumexp(0))

    begun = time.perf_counter()
    checked = range(0, len(layers), 5)
    expected = [[patched(layer, at) for at in range(clean.shape[1])] for layer in checked]
    alone = time.perf_counter() - begun
    largest = (torch.tensor(found)[list(checked)] - torch.tensor(expected)).abs().max()
    cells = len(checked) * clean.shape[1]
    print(
        f"{cells} cells, one forward pass each: {alone:.2f} s; all {len(found) * clean.shape[1]} by the tool, its "
        f"answer included: {seconds:.2f} s. Largest difference in the logit difference: {float(largest):.1g}."
    )


if __name__ == "__main__":
    anyio.run(main)
