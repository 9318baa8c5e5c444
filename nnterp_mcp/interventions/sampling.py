"""Choosing the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.interventions.finite import require_finite


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: What logits are divided by before drawing; 0 takes the likeliest token.
        top_p: Draws among the likeliest tokens that together have this probability.
        top_k: Draws among this many of the likeliest tokens; 0 for all.
        seed: Where the random numbers begin. Each prompt has its own sequence, whatever it is batched with.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def dice(self, prompt: int) -> torch.Generator:
        """The random numbers of one prompt of the request."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + prompt) % (1 << 63))


GREEDY = Sampling()
"""Always the likeliest token."""


def choose(
    logits: Float[Tensor, "row vocabulary"], sampling: Sampling, dice: list[torch.Generator]
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Chooses a token for each row.

    Args:
        logits: What the model says.
        sampling: How to choose.
        dice: The random numbers of each row; one is used.

    Returns:
        The tokens, and their log-probabilities in nats under the model itself: before temperature and truncation.

    Raises:
        InvalidRequest: The logits are not finite.
    """
    logits = logits.float()
    total = logits.logsumexp(-1)
    require_finite(total, "logits")
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        draws = torch.stack([torch.rand((), generator=generator) for generator in dice]).to(logits.device)
        tokens = _draw(logits / sampling.temperature, sampling, draws)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - total


def _draw(
    logits: Float[Tensor, "row vocabulary"], sampling: Sampling, draws: Float[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """The token at which the summed probability, from the likeliest one on, passes the number drawn."""
    count = logits.shape[-1] if sampling.top_k == 0 else min(sampling.top_k, logits.shape[-1])
    top = logits.topk(count, dim=-1)
    probs = top.values.softmax(-1)
    before = probs.cumsum(-1) - probs
    kept = torch.where(before < sampling.top_p, probs, 0)
    kept[:, 0] = probs[:, 0]
    reached = kept.cumsum(-1)
    place = (reached <= draws[:, None] * reached[:, -1:]).sum(-1).clamp_max(count - 1)
    return top.indices.gather(-1, place[:, None])[:, 0]
