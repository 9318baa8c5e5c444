"""Asks why smollm2-135m says " Paris" after "The capital of France is": which parts give the answer, what the strongest
head reads, and what the answer loses without the strongest heads and without random ones of the same layers.

Run it with `python examples/explain_a_prediction.py` once the package is installed.
"""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING, Any

import anyio
from client import answer, ask, laboratory

if TYPE_CHECKING:
    from mcp import Client

PROMPT = "The capital of France is"
TARGETS = {"answer": "Paris", "wrong": "London"}
OTHERS = {"Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Cuba": "Havana"}
HEADS, CUT, DRAWS = 9, 3, 5


async def main() -> None:
    async with laboratory() as client:
        await ask(client, "logit_lens", prompts=PROMPT, targets=TARGETS, layers="-4:")
        parts = await ask(client, "attribute", prompts=PROMPT, targets=TARGETS, top_k=6)
        heads = [row[0] for row in parts["table"]["rows"] if row[1] > 0 and "H" in row[0]][:CUT]
        layer, head = place(heads[0])
        await ask(client, "attention_probs", prompts=PROMPT, query_positions="last", layers=layer, heads=head)
        whole, without = await logit_difference(client, []), await logit_difference(client, heads)
        print(f"The logit difference is {whole}; without {', '.join(heads)} it is {without}.")
        chance = random.Random(0)
        draws = [await logit_difference(client, random_heads(heads, chance)) for _ in range(DRAWS)]
        print(
            f"Without as many other heads of these layers, {DRAWS} draws: {statistics.mean(draws):.2f} ± "
            f"{statistics.stdev(draws):.2f}.\n"
        )
        like = [
            {"prompt": PROMPT.replace("France", country), "targets": {"answer": city}}
            for country, city in OTHERS.items()
        ]
        await ask(client, "run_prompts", prompts=like)
        await ask(client, "run_prompts", prompts=like, interventions=cut(heads))


def place(name: str) -> tuple[int, int]:
    """A head's layer and number, from a name such as L23H4."""
    layer, head = name.removeprefix("L").split("H")
    return int(layer), int(head)


def cut(names: list[str]) -> list[dict[str, Any]]:
    return [{"op": "zero", "site": "heads_output", "layers": layer, "heads": head} for layer, head in map(place, names)]


def random_heads(names: list[str], chance: random.Random) -> list[str]:
    """As many heads of the same layers, none of them among those."""
    others = [f"L{layer}H{head}" for layer in sorted({place(name)[0] for name in names}) for head in range(HEADS)]
    return chance.sample([name for name in others if name not in names], len(names))


async def logit_difference(client: Client, names: list[str]) -> float:
    """The logit of the answer over the wrong one's with heads cut, exact though one part of the sum is shown."""
    found = await answer(
        client, "attribute", prompts=PROMPT, targets=TARGETS, by="sublayer", top_k=1, interventions=cut(names)
    )
    return found.structured_content["metric"]


if __name__ == "__main__":
    anyio.run(main)
