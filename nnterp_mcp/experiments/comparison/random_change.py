"""The control of a change of weights: a random change of the same norm and rank in each of the same modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nnterp_mcp.experiments.comparison.weights import WeightChange
from nnterp_mcp.model.loading.shared_copy import share_weights
from nnterp_mcp.model.standardized import StandardizedTransformer

_RANK = 64
"""The largest rank of a random change: a higher one would need as much memory as the weights."""


class RandomChange(nn.Module):
    """A linear map or an embedding with a random change of low rank.

    Args:
        inner: The module.
        rank: The rank of the change.
        norm: Its Frobenius norm.
        dice: Where it is drawn from.
    """

    def __init__(self, inner: nn.Module, rank: int, norm: float, dice: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        rows, columns = _sizes(inner)
        down = torch.randn(rank, columns, generator=dice)
        up = torch.randn(rows, rank, generator=dice)
        drawn = ((up.T @ up) * (down @ down.T)).sum().sqrt()
        weight = next(inner.parameters())
        self.down = nn.Parameter(down.to(weight), requires_grad=False)
        self.up = nn.Parameter((up * norm / drawn).to(weight), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight without the change."""
        return next(self.inner.parameters())

    def forward(self, states: Tensor) -> Float[Tensor, "*batch out"]:
        """The map with the change; by `linear`, for a product in attention is taken for that of queries and keys."""
        linear = nn.functional.linear
        read = self.down.T[states] if isinstance(self.inner, nn.Embedding) else linear(states, self.down)
        return self.inner(states) + linear(read, self.up)


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    assert isinstance(module, Conv1D)
    return module.nf, module.weight.shape[0]


def change_at_random(
    base: StandardizedTransformer, changes: Sequence[WeightChange], seed: int = 135
) -> tuple[StandardizedTransformer, int]:
    """The base with a random change in place of each change of a matrix, of the same norm and rank.

    Args:
        base: The base, which stays as it is.
        changes: The changes.
        seed: The random seed.

    Returns:
        The model, and how many changes it has no counterpart of: vectors, and what is no linear map.
    """
    module, dice, left = share_weights(base.module), torch.Generator().manual_seed(seed), 0
    for change in sorted(changes, key=lambda change: change.path):
        parent, _, name = change.path.rpartition(".")
        try:
            owner = module.get_submodule(parent)
            inner = owner.get_submodule(name)
        except AttributeError:
            left += 1
            continue
        if not isinstance(inner, nn.Linear | nn.Embedding | Conv1D) or len(change.shape) != 2:
            left += 1
            continue
        rank = min(change.rank or _RANK, _RANK, *_sizes(inner))
        setattr(owner, name, RandomChange(inner, rank, change.norm, dice))
    made = StandardizedTransformer(
        module.eval(), tokenizer=base.tokenizer, name="random change", alike=base, check_renaming=False
    )
    made.refuse(base.refusals)
    return made, left
