"""Lenses next to one another on a set of prompts: at which layers is the target among the top tokens?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int

from nnterp_mcp.experiments.statistics.bootstrap import Estimate, estimate_mean, estimate_median


@dataclass(frozen=True)
class LensScore:
    """Target ranks of one lens over prompts.

    Attributes:
        in_top: The share of prompts whose target is among the top tokens, by layer (pass@k).
        share: The mean of it over layers.
        gain: That mean minus the plain lens's, over the same prompts.
        first: The median over prompts of the first layer at which the target is among the top tokens, as an index into
            the layers; their number where it never is.
    """

    in_top: list[Estimate]
    share: Estimate
    gain: Estimate
    first: Estimate


def score_lenses(ranks: Int[torch.Tensor, "lens prompt layer"], plain: int, top: int) -> list[LensScore]:
    """Compares lenses by the ranks that they give the targets of the same prompts.

    Args:
        ranks: Ranks from 1; 0 for a target without a token.
        plain: Which of the lenses is the plain one.
        top: The rank up to which a target counts as read.
    """
    read = ((ranks > 0) & (ranks <= top)).double()
    none = torch.ones_like(read[..., :1])
    first = torch.cat([read, none], dim=-1).argmax(-1)
    counts, layers = read.sum(-1), ranks.shape[-1]
    return [
        LensScore(
            in_top=estimate_mean(own), share=share.over(layers), gain=gain.over(layers), first=estimate_median(layer)
        )
        for own, share, gain, layer in zip(
            read,
            estimate_mean(counts.T),
            estimate_mean((counts - counts[plain]).T),  # of whole numbers, so that no difference is exactly 0
            first.tolist(),
            strict=True,
        )
    ]
