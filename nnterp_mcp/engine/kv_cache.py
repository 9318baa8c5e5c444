"""Keys and values: how a model is given them, and those that rows of one prompt have in common."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

_OF_VERSION = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters  # pyright: ignore
"""How the installed transformers hands a cache to its own models; releases differ in its name."""


def cache_inputs(module: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """The arguments by which a forward pass goes on from keys and values and adds to them; or keeps none."""
    return {"use_cache": False} if cache is None else {"use_cache": True, cache_name(module): cache}


def cache_name(module: nn.Module) -> str:
    """The name of the cache among the arguments of a Hugging Face forward pass."""
    named = "past_key_values" in inspect.signature(module.forward).parameters
    return "past_key_values" if named or "past_key_values" in _OF_VERSION else "cache"


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


def _extend(states: Any, rows: int) -> Tensor:
    """One row stands for all without a copy, since what comes behind it is about to make one."""
    if len(states) == 1 or len(states) >= rows:
        return states.expand(rows, *states.shape[1:]) if len(states) == 1 else states
    return torch.cat([states, states[:1].expand(rows - len(states), *states.shape[1:])])
