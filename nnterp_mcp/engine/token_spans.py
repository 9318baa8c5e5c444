"""Which tokens a pass computes, and which of them an operation reaches.

A position counts the tokens of a prompt without padding and goes on through the tokens generated after it. A pass over
the prompt, a step over one new token with cached keys and values, and a pass over all of it again differ only in their
window; what an operation does at a position is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnterp_mcp.engine.constants import indices
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


@dataclass(frozen=True, eq=False)
class Reach:
    """The positions that an operation acts on.

    Attributes:
        positions: Those of each prompt of the request, by the prompt's index; a prompt that is missing is left alone.
        goes_on: Whether tokens generated after the prompt belong to it.
        in_step: Whether the operation acts at a step of a generation; 0 is the pass over the prompt.
    """

    positions: Mapping[int, Sequence[int]]
    goes_on: bool = False
    in_step: Callable[[int], bool] = lambda step: True

    def of(self, prompt: EncodedPrompt, begin: int, end: int) -> Iterator[int]:
        """The positions from `begin` to below `end` of a prompt and what was generated after it, in ascending order."""
        asked, new = self.positions.get(prompt.index), len(prompt.ids)
        if asked is None:
            return
        if self.in_step(0) and begin < new:
            yield from (at for at in asked if begin <= at < end)
        if self.goes_on:
            yield from (at for at in range(max(new, begin), end) if self.in_step(at - new + 1))


@dataclass(frozen=True)
class Selection:
    """Entries of a tensor (batch, position, …).

    Attributes:
        rows: The row of each entry.
        columns: Its column.
        entries: Its prompt and the position in it.
        whole: Whether these are all entries of the tensor, in its own order.
    """

    rows: list[int]
    columns: list[int]
    entries: list[tuple[int, int]]
    whole: bool

    def on(self, device: torch.device) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]] | tuple[None, None]:
        """Rows and columns as indices of a tensor there; None for both where these are all entries."""
        return (None, None) if self.whole else (indices(self.rows, device), indices(self.columns, device))


@dataclass(frozen=True)
class Window:
    """The columns of padded sequences that a pass computes.

    Attributes:
        prompts: The prompt of each row.
        padding: Padded tokens before it.
        first: The first column that is computed.
        length: Columns so far: padding, prompt and new tokens.
    """

    prompts: Sequence[EncodedPrompt]
    padding: Sequence[int]
    first: int
    length: int
    _selections: dict[tuple[Reach, int], Selection] = field(default_factory=dict)
    _of_owners: dict[int, Window] = field(default_factory=dict)

    @staticmethod
    def over(batch: Batch) -> Window:
        """The pass over whole prompts."""
        return Window(batch.prompts, batch.padding, 0, batch.inputs["input_ids"].shape[1])

    def of_owners(self, owners: Sequence[EncodedPrompt]) -> Window:
        """The same columns, each row under the prompt of the request that it is a run of.

        Args:
            owners: The prompt of each run; a row's index is the number of its run.
        """
        if id(owners) not in self._of_owners:
            prompts = [owners[row.index] for row in self.prompts]
            self._of_owners[id(owners)] = replace(self, prompts=prompts, _selections={}, _of_owners={})
        return self._of_owners[id(owners)]

    def select(self, reached: Reach, columns: int) -> Selection:
        """Where a reach lies in a tensor of the last so many columns of the sequence."""
        key = (reached, columns)
        if key not in self._selections:
            self._selections[key] = self._select(reached, columns)
        return self._selections[key]

    def _select(self, reached: Reach, columns: int) -> Selection:
        begin = self.length - columns
        found = [
            (row, padding + at - begin, prompt.index, at)
            for row, (prompt, padding) in enumerate(zip(self.prompts, self.padding, strict=True))
            for at in reached.of(prompt, begin - padding, self.length - padding)
        ]
        return Selection(
            rows=[row for row, *_ in found],
            columns=[column for _, column, *_ in found],
            entries=[(prompt, at) for *_, prompt, at in found],
            whole=len(found) == len(self.prompts) * columns,
        )

    def mask(self, reached: Reach, columns: int, device: torch.device) -> Bool[Tensor, "batch column"]:
        """Where a reach lies, as a mask over the last so many columns of the sequence."""
        chosen = self.select(reached, columns)
        marked = torch.zeros(len(self.prompts), columns, dtype=torch.bool)
        marked[chosen.rows, chosen.columns] = True
        return marked.to(device)

    def positions(self, columns: int, device: torch.device) -> Int[Tensor, "batch column"]:
        """The position that each of the last so many columns holds; negative where it is padding."""
        ends = torch.arange(self.length - columns, self.length, device=device)
        return ends - torch.tensor(self.padding, device=device)[:, None]
