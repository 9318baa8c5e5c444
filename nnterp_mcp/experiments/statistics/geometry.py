"""Geometry of sets of states: norms, angles between group means, principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nnterp_mcp.cancellation import check_cancelled

_SHUFFLES = 20


@dataclass(frozen=True)
class Norms:
    """Norms of states.

    Attributes:
        mean: The mean norm.
        deviation: Its standard deviation over states; None for one state.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Apart:
    """The difference between the means of two groups.

    Attributes:
        cosine: The cosine between them. States of one layer share most of their direction whatever their prompts, so
            it is near 1 for groups that differ in nothing, and for many that differ.
        shuffled: The mean cosine when the same states are dealt to two groups of these sizes at random: what
            `cosine` would be if the groups differed in nothing.
        gap: The distance between the means, as a share of the mean length of all these states.
        shuffled_gap: That distance when the states are assigned to groups at random.
    """

    cosine: float
    shuffled: float
    gap: float
    shuffled_gap: float


@dataclass(frozen=True)
class Components:
    """Principal components of centred states.

    Attributes:
        directions: One a row, of length one, by falling variance; the largest entry of each is positive.
        explained: The share of the whole variance that lies along each.
    """

    directions: Float[Tensor, "component width"]
    explained: Float[Tensor, " component"]


def measure_norms(states: Float[Tensor, "row width"]) -> Norms:
    """The mean norm of states, and its standard deviation."""
    norms = states.double().norm(dim=-1)
    return Norms(float(norms.mean()), float(norms.std()) if len(norms) > 1 else None)


def compare_groups(
    first: Float[Tensor, "row width"],
    second: Float[Tensor, "other width"],
    first_prompts: Sequence[int],
    second_prompts: Sequence[int],
    seed: int = 0,
) -> Apart:
    """Compares the mean states of two groups with those of groups formed at random.

    Prompts are dealt whole: tokens of one prompt resemble one another, and would make random groups look alike.

    Args:
        first: The states of one group.
        second: Those of the other.
        first_prompts: The prompt of each state.
        second_prompts: Those of the other group, none of them in the first.
        seed: The seed of the random groups.
    """
    check_cancelled()
    states = torch.cat([first, second]).double()
    numbers, of_row = torch.tensor([*first_prompts, *second_prompts]).unique(return_inverse=True)
    sums = states.new_zeros(len(numbers), states.shape[1]).index_add_(0, of_row, states)
    mine = torch.isin(numbers, torch.tensor([*first_prompts]))
    generator = torch.Generator().manual_seed(seed)
    deals = torch.zeros(1 + _SHUFFLES, len(numbers), dtype=torch.float64)
    deals[0] = mine
    for deal in deals[1:]:
        deal[torch.randperm(len(numbers), generator=generator)[: int(mine.sum())]] = 1
    cosines, gaps = _apart(sums, of_row.bincount().double(), deals, states.norm(dim=-1).mean())
    return Apart(float(cosines[0]), float(cosines[1:].mean()), float(gaps[0]), float(gaps[1:].mean()))


def _apart(
    sums: Float[Tensor, "prompt width"],
    counts: Float[Tensor, " prompt"],
    deals: Float[Tensor, "deal prompt"],
    scale: Tensor,
) -> tuple[Float[Tensor, " deal"], Float[Tensor, " deal"]]:
    """The cosine between the means of two groups, and their distance relative to a scale, for each deal of the prompts.

    The distance of states that are all zero is 0.
    """
    one, other = ((chosen @ sums) / (chosen @ counts)[:, None] for chosen in (deals, 1 - deals))
    distance = (one - other).norm(dim=-1)
    return cosine_similarity(one, other, dim=-1), distance / scale if scale > 0 else distance


def principal_components(states: Float[Tensor, "row width"], count: int) -> Components | None:
    """The directions along which states differ most from their mean.

    Where a few dimensions or tokens are far larger than all others, the first components are theirs.

    Args:
        count: How many components, at most; there are no more than states less one.

    Returns:
        The components; None for states that do not differ.
    """
    centred = states.double() - states.double().mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    variance = values.square()
    kept = min(count, len(states) - 1, directions.shape[0])
    if kept < 1 or float(variance.sum()) == 0.0:
        return None
    chosen = directions[:kept]
    largest: Int[Tensor, "component 1"] = chosen.abs().argmax(1, keepdim=True)
    return Components((chosen * chosen.gather(1, largest).sign()).float(), (variance[:kept] / variance.sum()).float())
