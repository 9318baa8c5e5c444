"""Choosing the next token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import choose_tokens


@dataclass(frozen=True)
class Sampling:
    """The sampling of next tokens.

    Attributes:
        temperature: Divides the logits before drawing; 0, and values below float32's smallest normal number, take
            the top token.
        top_p: Draws among the most likely tokens that together have this probability.
        top_k: Draws among this many of the most likely tokens; 0 for all.
        seed: The random seed. A prompt's random numbers do not depend on the other prompts of a call.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def dice(self, ids: Sequence[int]) -> torch.Generator:
        """The random numbers of a prompt of these tokens."""
        return dice_of(self.seed, ids)

    def draw(self, dice: list[torch.Generator]) -> Float[Tensor, " row"]:
        """The next random number of each row, from 0 to 1."""
        return torch.stack([torch.rand((), generator=generator) for generator in dice])


GREEDY = Sampling()
"""Always the top token."""


def dice_of(seed: int, ids: Sequence[int]) -> torch.Generator:
    """A generator seeded by a seed and the tokens of a prompt, and nothing else of a request."""
    digest = hashlib.blake2b(repr((seed, *ids)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def sample_tokens(
    logits: Float[Tensor, "row vocabulary"], sampling: Sampling, dice: list[torch.Generator]
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Chooses a token for each row.

    Args:
        logits: The model's logits.
        sampling: The sampling parameters.
        dice: The random generator of each row; one number is drawn.

    Returns:
        The tokens, and their log-probabilities in nats under the model itself: before temperature and truncation.

    Raises:
        InvalidRequest: The logits are not finite.
    """
    drawn = sampling.draw(dice) if sampling.temperature else None
    tokens, log_probs = choose_tokens(logits, sampling.temperature, sampling.top_p, sampling.top_k, drawn)
    require_finite(log_probs, "logits")
    return tokens, log_probs
