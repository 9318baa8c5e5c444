"""Keys and values: how a model is given them, and those that rows of one prompt have in common."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_OF_VERSION = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters  # pyright: ignore
"""How the installed transformers hands a cache to its own models; releases differ in its name."""

CACHE_NAMES = ("past_key_values", "cache")
"""The names of the cache among the arguments of a forward pass, in all releases."""


def cache_inputs(module: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """The arguments by which a forward pass goes on from keys and values and adds to them; or keeps none."""
    return {"use_cache": False} if cache is None else {"use_cache": True, cache_name(module): cache}


def cache_name(module: nn.Module) -> str:
    """The name of the cache among the arguments of a Hugging Face forward pass."""
    older, newer = CACHE_NAMES
    named = older in inspect.signature(module.forward).parameters
    return older if named or older in _OF_VERSION else newer


def takes_rows(module: nn.Module) -> bool:
    """True where a cache holds nothing but keys and values: rows can join it, and leave it."""
    layers = DynamicCache(config=module.config).layers  # pyright: ignore[reportArgumentType]
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def join_caches(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One cache with the rows of several, whose last columns are side by side.

    Shorter ones get zeros as their first columns, which the attention mask must leave out.

    Args:
        caches: Caches of one model, which `takes_rows`; they are used up.
    """
    widest = max(caches, key=lambda cache: cache.get_seq_length())
    for layers in zip(widest.layers, *(cache.layers for cache in caches), strict=True):
        whole, *parts = layers
        if not whole.is_initialized:  # it reads the keys and values of another layer
            continue
        width = whole.keys.shape[-2]  # pyright: ignore[reportOptionalMemberAccess]
        for name in ("keys", "values"):
            setattr(whole, name, torch.cat([_widen(getattr(part, name), width) for part in parts]))
    return widest


def _widen(states: Tensor, width: int) -> Tensor:
    return nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))


class SharedCache(DynamicCache):
    """Keys and values of a batch whose rows become more: a row that joins has those of the unpatched row.

    Attributes:
        goes_on: Whether tokens will follow those of the next pass. Otherwise what it adds is not kept: memory that is
            taken anew in every layer costs more than the attention over it.
    """

    goes_on = True

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds a layer's keys and values of new tokens, and returns all that each row has."""
        layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if not isinstance(layer, DynamicLayer) or layer.get_seq_length() == 0:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        before = layer.keys, layer.values
        layer.keys, layer.values = (_extend(states, key_states.shape[0]) for states in before)
        whole = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if not self.goes_on:
            layer.keys, layer.values = before
        return whole

    def fork(self, goes_on: bool = True) -> SharedCache:
        """A cache that begins with the same tokens; extending it leaves this one alone."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        other.goes_on = goes_on
        return other

    def select(self, rows: Sequence[int]) -> None:
        """Drops all other rows.

        Args:
            rows: Rows of the last pass, in ascending order, row 0 among them. Those that a layer does not hold are
                still the unpatched one there.
        """
        for layer in self.layers:
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                present = [row for row in rows if row < len(layer.keys)]
                layer.keys, layer.values = layer.keys[present], layer.values[present]


def _extend(states: Any, rows: int) -> Tensor:
    """One row stands for all without a copy, since what comes behind it is about to make one."""
    if len(states) == 1 or len(states) >= rows:
        return states.expand(rows, *states.shape[1:]) if len(states) == 1 else states
    return torch.cat([states, states[:1].expand(rows - len(states), *states.shape[1:])])
