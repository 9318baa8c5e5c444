"""Next-token distributions reduced on the device, so that nothing of vocabulary size leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled


@dataclass(frozen=True)
class Readout:
    """Distributions reduced to top tokens, entropy and target tokens.

    Attributes:
        top_ids: The top tokens.
        top_probs: Their probabilities.
        entropy: In nats.
        target_probs: Summed probability of each category's tokens.
        target_ranks: Rank of each category's top token; 1 is the top, 0 stands for a category without tokens.
    """

    top_ids: Int[Tensor, "*rows k"]
    top_probs: Float[Tensor, "*rows k"]
    entropy: Float[Tensor, "*rows"]
    target_probs: Float[Tensor, "*rows category"]
    target_ranks: Int[Tensor, "*rows category"]


class ReadoutRows:
    """Rows that come part by part, written to memory that is set aside for all of them.

    Parts that were kept as they came would lie between the large tensors that they are read from, and what lies there
    keeps the memory of those from being used again.

    Args:
        count: How many rows will come.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._whole: list[Tensor] = []

    def put(self, rows: Int[Tensor, " row"], part: Readout) -> None:
        """Writes some of the rows.

        Args:
            rows: Which ones.
            part: What they hold.
        """
        values: list[Tensor] = [getattr(part, field.name) for field in fields(part)]
        if not self._whole:
            self._whole = [value.new_empty(self._count, *value.shape[1:]) for value in values]
        for whole, value in zip(self._whole, values, strict=True):
            whole[rows] = value

    def read(self, shape: Sequence[int]) -> Readout:
        """All rows, on the CPU.

        Args:
            shape: The rows' shape.
        """
        return Readout(*(whole.cpu().reshape(*shape, *whole.shape[1:]) for whole in self._whole))


@dataclass(frozen=True)
class Categories:
    """Tokens to follow by category, padded to one length.

    Attributes:
        ids: Token ids.
        real: Which of them are no padding.
    """

    ids: Int[Tensor, "*rows category token"]
    real: Bool[Tensor, "*rows category token"]

    @classmethod
    def of(cls, sets: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Categories:
        """Categories for each row: `sets[row][category]` are token ids. Rows most often share one set."""
        different = {id(row): row for row in sets}
        longest = max((len(ids) for row in different.values() for ids in row), default=0)
        ids: list[list[list[int]]] = []
        real: list[list[list[bool]]] = []
        for row in different.values():
            check_cancelled()
            ids.append([[*one, *[0] * (longest - len(one))] for one in row])
            real.append([[index < len(one) for index in range(longest)] for one in row])
        places = {key: place for place, key in enumerate(different)}
        of_row = torch.tensor([places[id(row)] for row in sets], dtype=torch.long, device=device)
        shape = (len(different), len(sets[0]) if sets else 0, longest)
        return cls(
            torch.tensor(ids, dtype=torch.long, device=device).reshape(shape)[of_row],
            torch.tensor(real, dtype=torch.bool, device=device).reshape(shape)[of_row],
        )

    def __getitem__(self, rows: Tensor) -> Categories:
        """The categories of some rows."""
        return Categories(self.ids[rows], self.real[rows])
