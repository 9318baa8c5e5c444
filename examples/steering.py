"""Connects a client to a server of its own, makes a vector from ten pairs and steers smollm2-135m's text with it.

Run it with `python examples/steering.py` once the package is installed.
"""

from __future__ import annotations

from typing import Any

import anyio
from client import ask, laboratory

PAIRS = [
    ("I am so happy today, what a wonderful", "I am so sad today, what a terrible"),
    ("The party was full of laughter and we all felt", "The funeral was full of crying and we all felt"),
    ("She smiled with delight when she opened the", "She wept with grief when she opened the"),
    ("We won the game and everyone was cheering with", "We lost the game and everyone was mourning with"),
    ("What a beautiful morning, I feel alive and", "What a gloomy morning, I feel dead and"),
    ("He danced around the room, overjoyed by the", "He collapsed in the room, heartbroken by the"),
    ("The children giggled and played in the bright", "The children sobbed and hid in the dark"),
    ("Our wedding day was the happiest moment of my", "Our divorce day was the saddest moment of my"),
    ("I love this song, it always makes me feel", "I hate this song, it always makes me feel"),
    ("They hugged each other, grateful and full of", "They left each other, bitter and full of"),
]
PROMPT = "I think that my life is"


async def main() -> None:
    async with laboratory() as client:
        positive, negative = ([pair[side] for pair in PAIRS] for side in (0, 1))
        await ask(client, "make_vector", name="joy", method="mean_difference", positive=positive, negative=negative)
        targets = {
            "joy": ["happy", "wonderful", "amazing", "filled", "blessed"],
            "grief": ["doomed", "terrible", "over", "ruined", "miserable"],
        }
        sweep: dict[str, Any] = {"prompts": PROMPT, "vector": "joy", "control": True}
        await ask(client, "steer", layers=[8, 12, 16], factors=[-4, -2, 2, 4], targets=targets, **sweep)
        await ask(client, "steer", layers=12, factors=[-4, -2, 2, 4], max_new_tokens=24, **sweep)


if __name__ == "__main__":
    anyio.run(main)
