"""What the jobs are done on, the same texts for every contestant and in every run."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

ANSWER = "Paris"
"""The string whose first tokens, with and without a leading space, are followed where a job follows any."""

REPEAT_PROMPT = "king king\n1135 1135\nhello hello\n?"
"""The target prompt of a patchscope; its last token is the one that is patched."""

STEERING = (" love", " hate")
"""The tokens between whose embeddings the steering vector points."""

_TEXT = (
    "the city of light lies on a river and its people walk by the water in the evening when every lamp is lit while "
    "old stones keep some warmth from a long day and children run home over small bridges to eat bread with their "
    "mother who tells them again how the king lost his way in a dark wood"
)


@dataclass(frozen=True)
class Workload:
    """What a job is done on.

    Attributes:
        prompts: The texts; of a patching grid the clean and the corrupted one.
        positions: Which positions of each are read.
        new_tokens: How many tokens are generated after each.
    """

    prompts: tuple[str, ...]
    positions: Literal["last", "all"] = "last"
    new_tokens: int = 0

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Workload:
        """What `dataclasses.asdict` made of one, once it has been JSON."""
        return cls(tuple(data["prompts"]), data["positions"], data["new_tokens"])

    def small(self) -> Workload:
        """A part of it that is done in no time, with texts that fit any model."""
        prompts = tuple(" ".join(prompt.split()[:8]) for prompt in self.prompts[:4])
        return replace(self, prompts=prompts, new_tokens=min(self.new_tokens, 8))


def texts(count: int, shortest: int, longest: int) -> tuple[str, ...]:
    """Texts of `shortest` to `longest` words, always the same ones."""
    dice = random.Random(0)
    lengths = [dice.randint(shortest, longest) for _ in range(count)]
    return tuple(_cut(dice.randrange(100), length) for length in lengths)


def text(words: int) -> tuple[str, ...]:
    """One text of so many words."""
    return texts(1, words, words)


def _cut(start: int, length: int) -> str:
    """So many words of the text, which begins again where it ends."""
    words = _TEXT.split()
    return " ".join(words[(start + at) % len(words)] for at in range(length))
