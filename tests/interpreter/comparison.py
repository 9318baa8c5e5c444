"""Numbers of the tools beside those of the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp.model.text.tokens import token_text

TOLERANCE = 2e-4
"""Of numbers up to 1, and of larger ones in proportion."""


@dataclass
class Comparison:
    """What came of one call.

    Attributes:
        tokenizer: Puts words to tokens.
        largest: The largest difference.
        faults: What differs.
        ties: Choices between two tokens that rounding decides: what follows is not compared.
    """

    tokenizer: Any
    largest: float = 0.0
    faults: list[str] = field(default_factory=list[str])
    ties: int = 0

    def near(self, what: str, found: Any, expected: Any) -> None:
        """Compares numbers."""
        one, other = (torch.as_tensor(value).detach().double() for value in (found, expected))
        if one.shape != other.shape:
            self.faults.append(f"{what}: shape {tuple(one.shape)}, not {tuple(other.shape)}")
            return
        if not one.numel():
            return
        difference = float((one - other).abs().max()) / max(1.0, float(other.abs().max()))
        self.largest = max(self.largest, difference)
        if not difference <= TOLERANCE:
            self.faults.append(f"{what}: {_short(one)}, not {_short(other)}")

    def same(self, what: str, found: Any, expected: Any) -> None:
        """Compares what is no number."""
        if found != expected:
            self.faults.append(f"{what}: {found!r}, not {expected!r}")

    def top(self, what: str, found: Sequence[tuple[str, float]], log_probs: Tensor) -> None:
        """Compares the top tokens."""
        best = log_probs.topk(len(found) + 1)
        self.near(f"{what} top", [p for _, p in found], best.values[:-1].exp())
        if bool((best.values.diff() < -1e-4).all()):
            self.same(f"{what} top", [token for token, _ in found], [self.word(int(at)) for at in best.indices[:-1]])

    def followed(
        self, what: str, found: Sequence[tuple[float, int]], log_probs: Tensor, words: Sequence[Sequence[str]]
    ) -> None:
        """Compares the probability and the rank of each category."""
        for (p, rank), strings in zip(found, words, strict=True):
            ids = first_tokens(self.tokenizer, strings)
            self.near(f"{what} p of {strings}", p, log_probs[ids].exp().sum())
            best = log_probs[ids].max()
            span = [1 + int((log_probs > best + margin).sum()) for margin in (1e-4, -1e-4)]
            if not span[0] <= rank <= span[1]:
                self.faults.append(f"{what} rank of {strings}: {rank}, not {span[0]} to {span[1]}")

    def word(self, token: int) -> str:
        """A token as answers name it."""
        return token_text(self.tokenizer, token)


def first_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The first tokens of words, with and without a leading space; a token that is this space alone is passed over."""
    texts = [text for word in words for text in (word, f" {word}")]
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return list(dict.fromkeys(next(token for token in ids if tokenizer.decode([token]).strip()) for ids in found))


def entropy(log_probs: Tensor) -> Tensor:
    """In nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL(one ‖ other), in nats."""
    return (one.exp() * (one - other)).sum(-1)


def _short(values: Tensor) -> str:
    listed = [f"{value:.6g}" for value in values.flatten()[:8].tolist()]
    return f"[{', '.join(listed)}{', …' if values.numel() > 8 else ''}]"
