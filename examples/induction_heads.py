"""Finds the induction heads of smollm2-135m, and what copying loses without them and without random ones.

Run it with `python examples/induction_heads.py` once the package is installed.
"""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

import anyio
from client import answer, ask, laboratory

if TYPE_CHECKING:
    from mcp import Client

PROMPT = "When Mary and John went to the store, John gave a drink to"
LAYERS, HEADS = 30, 9
KINDS = ("induction", "previous token")
DRAWS = 5


async def main() -> None:
    async with laboratory() as client:
        found = await ask(client, "attention_probs", prompts=PROMPT)
        await ask(client, "attention_probs", prompts=PROMPT, query_positions="last", layers="17:26")
        shown = {kind: [row[0] for row in found["table"]["rows"] if row[1] == kind] for kind in KINDS}
        known = [name for names in shown.values() for name in names]
        others = [f"L{layer}H{head}" for layer in range(LAYERS) for head in range(HEADS)]
        others = [name for name in others if name not in known]
        chance = random.Random(0)
        draws = [await copying(client, chance.sample(others, len(shown["induction"]))) for _ in range(DRAWS)]
        print(f"Copying: the probability of the right next token on repeated random tokens is {found['copying']}.")
        for kind, names in shown.items():
            print(f"Without the {kind} heads {', '.join(names)}: {await copying(client, names)}.")
        print(
            f"Without as many other heads, {DRAWS} draws: {statistics.mean(draws):.3f} ± {statistics.stdev(draws):.3f}."
        )


async def copying(client: Client, names: list[str]) -> float:
    """Copying with heads knocked out; one head is read, so that the answer is short."""
    places = [name.removeprefix("L").split("H") for name in names]
    knockouts = [{"op": "knockout", "layers": int(layer), "heads": int(head)} for layer, head in places]
    result = await answer(client, "attention_probs", prompts=PROMPT, layers=0, heads=0, interventions=knockouts)
    return result.structured_content["copying"]


if __name__ == "__main__":
    anyio.run(main)
