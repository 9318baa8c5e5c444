"""Separation of two sets of prompts by a direction, in sample and held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Fit = Callable[[Tensor, Tensor], Float[Tensor, "layer hidden"]]
"""Makes a direction for each layer from two sets of states (prompt, layer, hidden)."""

_FOLDS = 10


@dataclass(frozen=True)
class Separation:
    """Projections of two sets on unit directions, and their separation.

    Attributes:
        positive: Mean projection of the first set.
        negative: Mean projection of the second set.
        effect: Their difference over the pooled standard deviation (Cohen's d), on the very prompts that made the
            directions, where it is large even for sets that differ in nothing; NaN for sets of one.
        held_out: The chance that a positive prompt projects further than a negative one, on prompts that the
            direction was made without; 0.5 is chance; NaN for sets of one.
    """

    positive: Float[Tensor, " layer"]
    negative: Float[Tensor, " layer"]
    effect: Float[Tensor, " layer"]
    held_out: Float[Tensor, " layer"]


def separate(
    positive: Float[Tensor, "prompt layer hidden"], negative: Float[Tensor, "other layer hidden"], fit: Fit
) -> Separation:
    """Projects both sets on the directions that `fit` makes from them.

    The held-out figure is the AUC of up to ten folds, each projected on directions made from the others.

    Args:
        positive: States of the first set.
        negative: States of the second set.
        fit: Makes the directions.
    """
    first, second = _project(positive, negative, fit(positive, negative))
    spare = len(first) + len(second) - 2
    spread = first.var(0, correction=0) * len(first) + second.var(0, correction=0) * len(second)
    gap = first.mean(0) - second.mean(0)
    none = torch.full_like(gap, torch.nan)
    return Separation(
        positive=first.mean(0),
        negative=second.mean(0),
        effect=gap / (spread / spare).sqrt() if min(len(first), len(second)) > 1 else none,
        held_out=_held_out(positive, negative, fit),
    )


def _held_out(positive: Tensor, negative: Tensor, fit: Fit) -> Float[Tensor, " layer"]:
    folds = min(_FOLDS, len(positive), len(negative))
    if folds < 2:
        return positive.new_full((positive.shape[1],), torch.nan)
    shares: list[Tensor] = []
    for fold in range(folds):
        here, there = (torch.arange(len(states)) % folds == fold for states in (positive, negative))
        direction = fit(positive[~here], negative[~there])
        first, second = _project(positive[here], negative[there], direction)
        shares.append((first[:, None] > second[None]).float().mean((0, 1)))
    return torch.stack(shares).mean(0)


def _project(
    positive: Tensor, negative: Tensor, direction: Float[Tensor, "layer hidden"]
) -> tuple[Float[Tensor, "prompt layer"], Float[Tensor, "other layer"]]:
    unit = torch.nn.functional.normalize(direction, dim=-1)
    return (positive * unit).sum(-1), (negative * unit).sum(-1)
