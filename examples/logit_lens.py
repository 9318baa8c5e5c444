"""Connects a client to a server of its own and asks where in smollm2-135m the capital of France is recalled.

Run it with `python examples/logit_lens.py` once the package is installed.
"""

from __future__ import annotations

import anyio
from client import ask, laboratory


async def main() -> None:
    async with laboratory() as client:
        await ask(
            client,
            "logit_lens",
            prompts=["The capital of France is", "The capital of Italy is"],
            targets={"French": "Paris", "Italian": "Rome"},
        )
        await ask(client, "logit_lens", prompts="The capital of France is", layers="-6:", targets={"capital": "Paris"})


if __name__ == "__main__":
    anyio.run(main)
