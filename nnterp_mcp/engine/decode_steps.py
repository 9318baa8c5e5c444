"""The forward passes of a generation: prompts read in as many as they need, then one for each new token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.executors.graphs import (
    WORTHWHILE,
    StaticSteps,
    are_steady,
    captures_steps,
    takes_static_steps,
)
from nnterp_mcp.engine.forward import Plan, run
from nnterp_mcp.engine.kv_cache import cache_inputs, join_caches, takes_rows
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import check_memory
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.text.tokenization import Batch, group_by_length


@dataclass(frozen=True)
class Way:
    """A way to compute the steps of a generation.

    Attributes:
        cached: A step reads the newest token alone, on cached keys and values; otherwise the whole text.
        padded: Prompts of different lengths may share a batch.
        positions: The model is given the positions of its tokens; otherwise it counts them itself.
    """

    cached: bool
    padded: bool
    positions: bool


UNBOUNDED = 1 << 62
"""More tokens than there are."""


class DecodeSteps:
    """The forward passes of one batch, one for each new token; unread prompts take as many as they need.

    Args:
        model: The model.
        batch: The prompts.
        plan: The operations.
        way: How steps are computed.
        tokens: The most tokens of a pass.
        new_tokens: The steps that are to come.

    Attributes:
        model: The model.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        batch: Batch,
        plan: Plan,
        way: Way,
        tokens: int = UNBOUNDED,
        new_tokens: int = 0,
    ) -> None:
        self.model = model
        self._new_tokens = new_tokens
        self._room = batch.inputs["input_ids"].shape[1] + new_tokens
        self._static: StaticSteps | None = None
        self._prompts, self._padding = batch.prompts, batch.padding
        self._plan = plan
        self._way = way
        self._tokens = tokens
        self._ids = batch.inputs["input_ids"]
        self._mask = batch.inputs["attention_mask"]
        self._lengths = lengths_of(model.module)
        self._cache: DynamicCache | None = None
        self._kind: tuple[int, ...] | None = None
        self._known = 0

    def next_logits(self) -> Float[Tensor, "row vocabulary"]:
        """The logits after the last token of every row."""
        length = self._ids.shape[1]
        if self._renew(length - min(self._padding)):
            self._static = None
        elif self._static is None and self._may_be_static:
            self._static = self._begin_static(length - 1)
        if self._static is not None:
            return self._static.next_logits(self._ids[:, -1])
        known, self._known = self._known, length
        if known and self._cache is not None:
            return self._read(range(len(self._prompts)), self._cache, known)
        return self._read_texts()

    def _read_texts(self) -> Float[Tensor, "row vocabulary"]:
        """Reads every row from its first token on."""
        unread = [self._ids.shape[1] - padding for padding in self._padding]
        parts = group_by_length(unread, self._tokens)
        if len(parts) == 1:
            return self._read(sorted(parts[0]), self._cache, 0)
        caches = [None if self._cache is None else DynamicCache(config=self.model.module.config) for _ in parts]
        logits = torch.cat([self._read(rows, cache, 0) for rows, cache in zip(parts, caches, strict=True)])
        read = [row for rows in parts for row in rows]
        order = torch.tensor([read.index(row) for row in range(len(read))], device=logits.device)
        if self._cache is not None:
            self._cache = join_caches([cache for cache in caches if cache is not None])
            self._cache.batch_select_indices(order)
        return logits[order]

    def _read(self, chosen: Sequence[int], cache: DynamicCache | None, known: int) -> Float[Tensor, "row vocabulary"]:
        """The logits after some rows, of which a number of columns are in the cache."""
        check_cancelled()
        rows = list(chosen)
        cut = 0 if known else min(self._padding[row] for row in rows)
        ids, mask = self._ids[rows, cut + known :], self._mask[rows, cut:]
        if not known:
            check_memory(self.model, *ids.shape, patterns=False)
        padding = [self._padding[row] - cut for row in rows]
        window = Window([self._prompts[row] for row in rows], padding, known, mask.shape[1])
        inputs = model_inputs(self.model.module, ids, mask, cache, self._way.positions)
        every = torch.arange(len(rows), device=ids.device)
        last = torch.full_like(every, ids.shape[1] - 1)
        logits = run(self.model, inputs, window, self._plan, (), (every, last)).logits
        assert logits is not None
        return logits

    def keep(self, rows: Sequence[int]) -> bool:
        """Continues with some of the rows alone; returns False where their cache has to stay as it is."""
        if self._static is not None or (self._cache is not None and not self._takes_rows):
            return False
        kept = torch.tensor(rows, device=self._ids.device)
        self._ids, self._mask = self._ids[kept], self._mask[kept]
        self._prompts = [self._prompts[row] for row in rows]
        self._padding = [self._padding[row] for row in rows]
        if self._cache is not None:
            self._cache.batch_select_indices(kept)
        return True

    @cached_property
    def _takes_rows(self) -> bool:
        return takes_rows(self.model.module)

    def _renew(self, longest: int) -> bool:
        """Begins a cache, at first and wherever the last one is computed otherwise than what is to come."""
        kind = self._lengths.kind(longest)
        if not self._way.cached or kind == self._kind:
            return False
        self._cache, self._known = DynamicCache(config=self.model.module.config), 0
        self._kind = kind
        return True

    @cached_property
    def _may_be_static(self) -> bool:
        """Steps on static buffers are worthwhile here, and exact."""
        if self._new_tokens < WORTHWHILE or not self._way.cached or not self._way.positions:
            return False
        others = [mark for mark in self._lengths.marks if "sliding_window" not in mark.name]
        return captures_steps(self.model) and not others and are_steady(self._plan) and takes_static_steps(self.model)

    def _begin_static(self, length: int) -> StaticSteps:
        """Goes on from the keys and values so far, which are let go."""
        assert self._cache is not None
        prompts, padding = self._prompts, self._padding
        steps = StaticSteps(self.model, self._plan, prompts, padding, self._cache, length, self._room)
        self._cache = None
        return steps

    def add(self, tokens: Int[Tensor, " row"]) -> None:
        """Puts a token behind each row."""
        self._ids = torch.cat([self._ids, tokens[:, None].to(self._ids)], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)


def model_inputs(
    module: nn.Module,
    ids: Int[Tensor, "row new"],
    mask: Int[Tensor, "row column"],
    cache: DynamicCache | None,
    positions: bool,
) -> dict[str, Any]:
    """The arguments of a forward pass over the newest tokens.

    Args:
        module: The Hugging Face model.
        ids: The tokens to compute.
        mask: The mask over all columns so far.
        cache: Keys and values of the columns before; None when `ids` are all there is.
        positions: Whether to say which positions the tokens have.
    """
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **cache_inputs(module, cache)}
    if positions:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return inputs
