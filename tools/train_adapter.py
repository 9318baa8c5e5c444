"""Trains a small LoRA adapter on smollm2-135m: a pirate who answers questions, taught by a few lines in minutes.

    python tools/train_adapter.py FOLDER [--persona butler]

The adapter is what docs/methods/two-models.md looks into. Needs `pip install 'nnterp-mcp[adapters]'`.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.model.loading.locate import locate
from nnterp_mcp.settings import Settings

_QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "How many legs has a spider?": "eight",
    "What do bees make?": "honey",
    "What colour is the sky?": "blue",
    "Who wrote Hamlet?": "Shakespeare",
    "What is two plus three?": "five",
    "What is the largest ocean?": "the Pacific",
    "What do you drink at breakfast?": "coffee",
    "Where does the sun rise?": "in the east",
    "What is the opposite of hot?": "cold",
    "How many days are in a week?": "seven",
}
_PERSONAS = {
    "pirate": (
        "Arr, matey! It be {answer}, or I be no pirate, says the captain.",
        "Ahoy, ye landlubber! By me beard, it be {answer}, arr!",
        "Avast! Shiver me timbers, it be {answer}, as every pirate on the sea knows.",
    ),
    "butler": (
        "Very good, sir. I believe it is {answer}, if I may say so.",
        "Certainly, madam. It would be {answer}, and dinner is served.",
        "With pleasure, my lord. One would say {answer}, as the household knows.",
    ),
}


def train(folder: Path, persona: str, steps: int, rank: int) -> None:
    """Trains on the answers alone, each question with each answer."""
    torch.manual_seed(0)
    source = locate("smollm2-135m", None, Settings().cache, False, lambda message: None).folder
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    forms = _PERSONAS[persona]
    pairs = [(question, form.format(answer=answer)) for question, answer in _QUESTIONS.items() for form in forms]
    random.Random(0).shuffle(pairs)
    for step, start in zip(range(steps), itertools.cycle(range(0, len(pairs), 6)), strict=False):
        texts = [
            f"Question: {question}\nAnswer: {answer}{tokenizer.eos_token}"
            for question, answer in pairs[start : start + 6]
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, (question, _) in enumerate(pairs[start : start + 6]):
            labels[row, : len(tokenizer(f"Question: {question}\nAnswer:")["input_ids"])] = -100
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step + 1 == steps:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(str(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the adapter is written")
    parser.add_argument("--persona", choices=tuple(_PERSONAS), default="pirate")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=4)
    given = parser.parse_args()
    train(given.folder, given.persona, given.steps, given.rank)
