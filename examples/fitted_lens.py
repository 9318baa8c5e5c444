"""Connects a client to a server of its own, fits a tuned lens of smollm2-135m, and reads facts through it.

The lens is fitted on twelve sentences, then compared with the logit lens, with other layers' maps and with random maps
on eight facts; one of them is read layer by layer, and by a patchscope that shows the lens next to it.

Run it with `python examples/fitted_lens.py` once the package is installed.
"""

from __future__ import annotations

import anyio
from client import ask, laboratory

TEXTS = [
    "The river bends twice before it reaches the town, and on the second bend there is a mill that nobody uses.",
    "In 1969 two astronauts walked on the Moon while a third circled above them, and millions of people watched.",
    "Add the flour to the butter, stir until it is smooth, and pour in the milk little by little.",
    "The court found that the contract had never been signed, and ordered the company to pay back the money.",
    "Most of the plants in the garden were planted by her grandmother, who had brought the seeds from Greece.",
    "A train leaves the station every ten minutes, but on Sundays passengers have to wait for half an hour.",
    "The study compared two groups of patients, and found no difference in how fast they recovered.",
    "He opened the letter slowly, read it twice, and put it back into the drawer without a word.",
    "Copper conducts electricity well, which is why most of the wires in a house are made of it.",
    "The museum in Berlin shows paintings of three centuries, and is closed on the first Monday of the month.",
    "When the price of oil rises, airlines sell fewer tickets and the price of bread goes up as well.",
    "To save the file under another name, open the menu, choose a folder, and press the button at the bottom.",
]
FACTS = {
    "The capital of France is the city of": " Paris",
    "The capital of Japan is the city of": " Tokyo",
    "The capital of Spain is the city of": " Madrid",
    "The capital of Russia is the city of": " Moscow",
    "The capital of Greece is the city of": " Athens",
    "The opposite of hot is": " cold",
    "The month after January is": " February",
    "The first president of the United States was George": " Washington",
}


async def main() -> None:
    async with laboratory() as client:
        await ask(client, "fit_lens", name="tuned", method="tuned", prompts=TEXTS, skip_first=1)
        facts = [{"prompt": prompt, "targets": {"answer": answer}} for prompt, answer in FACTS.items()]
        await ask(client, "run_prompts", prompts=facts, readout="logit_lens", lens="tuned")
        prompt = next(iter(FACTS))
        await ask(client, "logit_lens", prompts=prompt, lens="tuned", layers="20:", targets={"capital": " Paris"})
        await ask(client, "patchscope", source_prompts=prompt, source_layers="20:", lens="tuned", top_k=1)


if __name__ == "__main__":
    anyio.run(main)
