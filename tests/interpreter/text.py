"""Prompts as the model reads them, and which tokens a position means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """A prompt.

    Attributes:
        text: What it says.
        ids: Its tokens, the special ones included.
        spans: Where each token stands in the text.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    @classmethod
    def read(cls, tokenizer: Any, text: str) -> Text:
        """Encodes a text as the tokenizer does by itself."""
        found = tokenizer(text, return_offsets_mapping=True)
        return cls(text, list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]])

    def at(self, asked: Any) -> list[int]:
        """The tokens of one or several positions, in ascending order."""
        return sorted({index for one in as_list(asked) for index in self._one(one)})

    def _one(self, asked: Any) -> list[int]:
        count = len(self.ids)
        if isinstance(asked, int):
            return [range(count)[asked]]
        if isinstance(asked, dict):
            start = [found.start() for found in re.finditer(re.escape(asked["text"]), self.text)][
                asked.get("occurrence", 0)
            ]
            end = start + len(asked["text"])
            return [at for at, (first, last) in enumerate(self.spans) if first < end and last > start]
        return [count - 1] if asked == "last" else numbers(asked, count)


def as_list(asked: Any) -> list[Any]:
    """One thing or several, as several."""
    return list(asked) if isinstance(asked, list | tuple) else [asked]


def numbers(asked: Any, count: int) -> list[int]:
    """What `all`, a number, a list or a range means among so many."""
    if isinstance(asked, str):
        parts = [] if asked == "all" else [int(part) if part.strip() else None for part in asked.split(":")]
        return sorted(range(count)[slice(*parts)]) if parts else list(range(count))
    return sorted({range(count)[one] for one in as_list(asked)})


def goes_on(asked: Sequence[Any], last: bool) -> bool:
    """Whether positions reach on to new tokens: `all`, a range from a token on, and `last` where it moves."""
    return any(
        isinstance(one, str) and (one == "all" or (last and one == "last") or re.fullmatch(r"\s*\d*\s*:\s*", one))
        for one in asked
    )


def without_first(asked: Any, text: Text) -> Any:
    """Positions whose states are averaged or projected out: `all` is without the first token, if there are others."""
    return ["1:" if one == "all" and len(text.ids) > 1 else one for one in as_list(asked)]
