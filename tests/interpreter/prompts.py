"""Random prompts and pairs of them, and the operations that fit any."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.interpreter.subject import Subject

WORDS = (
    *("cat", "dog", "sun", "sea", "red", "blue", "old", "is"),
    *("of", "and", "the", "that", "Paris", "Spain", "7", "?"),
)
MARK = "France"
"""A word that every prompt has, for positions by text."""


def draw_prompts(dice: Random, most: int) -> list[str]:
    """A prompt or more."""
    made: list[str] = []
    for _ in range(dice.randint(1, most)):
        words = dice.choices(WORDS, k=dice.randint(1, 7))
        words.insert(dice.randint(0, len(words)), MARK)
        made.append(" ".join(words))
    return made


def draw_pair(dice: Random, subject: Subject) -> tuple[str, str]:
    """Two prompts of one length in tokens, which differ in a word."""
    before, after = (" ".join(dice.choices(WORDS, k=dice.randint(1, 3))) for _ in range(2))
    one, other = dice.sample(WORDS, 2)
    pair = f"{before} {one} {MARK} {after}", f"{before} {other} {MARK} {after}"
    lengths = {len(subject.by.read(text).ids) for text in pair}
    return pair if len(lengths) == 1 else draw_pair(dice, subject)


def anywhere(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that fit any set of prompts: they name none of one."""
    return [one for one in operations if "prompts" not in one and "from" not in one]
