"""Source prompts and the beginning of a target prompt in one forward pass: end to end in one row, each reading itself.

A pass over a few tokens takes about as long as it takes to read the weights, so one pass over all of them saves most of
the other. Whether a model reads packed prompts as it reads them alone is found by trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from nnterp_mcp.engine.batching import attempt
from nnterp_mcp.engine.executors.execution import Reading, execute
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.kv_cache import SharedCache, cache_inputs
from nnterp_mcp.engine.observation import read_prefix
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.patchscope import Target, patch_target
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of

PACKED_TOKENS = 128
"""Tokens in a packed pass, at most: beyond, a pass takes time for each token, and each masks all others."""

PackedSources = tuple[Float[Tensor, "layer source hidden"], SharedCache]
"""The states after each source prompt, and the keys and values of the target prompt's beginning."""

_tried: WeakKeyDictionary[nn.Module, dict[str, tuple[int, bool]]] = WeakKeyDictionary()
"""Under each attention implementation, the longest prompt that was tried and whether packed prompts read the same."""


@torch.no_grad()
def read_packed(
    model: StandardizedTransformer, sources: Sequence[Sequence[int]], layers: Sequence[int], target: Target
) -> PackedSources | None:
    """Reads the residual stream after the last token of each source, and the target's tokens before its position.

    Args:
        model: The model.
        sources: The tokens of each source prompt.
        layers: The layers to read, in ascending order.
        target: The target prompt; rows that are patched go on from its keys and values.

    Returns:
        Both, on the model's device; None where packing does not pay, does not fit the memory or is not exact.
    """
    longest = max(target.position, *map(len, sources))
    if not target.position or target.position + sum(map(len, sources)) > PACKED_TOKENS:
        return None
    if len({lengths_of(model.module).kind(length) for length in (target.position, *map(len, sources))}) > 1:
        return None
    if not patch_target(model, target, torch.zeros(1, model.hidden_size), [layers[-1]]).sharing.prefix:
        return None

    def read() -> PackedSources | None:
        known = _tried.setdefault(model.module, {})
        length, exact = known.get(model.attention, (0, False))
        if length < longest:
            exact = _is_exact(model, sources, target)
            known[model.attention] = longest, exact
        return _read(model, sources, layers, target) if exact else None

    (found,) = attempt(model, read) or (None,)
    return found


def _read(
    model: StandardizedTransformer, sources: Sequence[Sequence[int]], layers: Sequence[int], target: Target
) -> PackedSources:
    rows = [target.ids[: target.position], *sources]
    ends = (torch.tensor([len(row) for row in rows]).cumsum(0) - 1)[1:]
    cache = SharedCache(config=model.module.config)
    places = [Place("layers_output", layer) for layer in layers]
    reading = Reading({place: lambda states: states[0, ends].to(model.device) for place in _to_the_end(model, places)})
    execute(model, {**_pack(model, rows), **cache_inputs(model.module, cache)}, reading)
    _cut(cache, target.position)
    return torch.stack([reading.taken[place] for place in places]), cache


def _layers(cache: SharedCache) -> list[DynamicLayer]:
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def _cut(cache: SharedCache, length: int) -> None:
    """Keeps the first tokens.

    Raises:
        Unsupported: A layer does not keep every token.
    """
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            raise Unsupported(f"a cache of {type(layer).__name__} cannot be cut back")
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def _pack(model: StandardizedTransformer, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The inputs of a pass over one row in which each of these reads itself alone."""
    lengths = torch.tensor([len(row) for row in rows])
    owner = torch.arange(len(rows)).repeat_interleave(lengths)
    own = (owner[:, None] == owner).tril()
    mask = torch.zeros(own.shape, dtype=model.module.dtype).masked_fill(~own, torch.finfo(model.module.dtype).min)
    inputs = {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "attention_mask": mask[None, None],
    }
    return {name: value.to(model.device) for name, value in inputs.items()}


def _is_exact(model: StandardizedTransformer, sources: Sequence[Sequence[int]], target: Target) -> bool:
    """Checks that states, keys and values of every layer are those of the prompts alone."""
    layers = range(model.num_layers)
    try:
        states, cache = _read(model, sources, layers, target)
    except Exception as error:  # whatever else the modelling code raises, it does not allow this
        if says_nothing(error):
            raise
        return False
    alone = torch.stack([_read_alone(model, ids) for ids in sources], dim=1)
    pairs = [(states, alone)]
    prefix = read_prefix(model, target.base, target.position)
    for found, expected in zip(_layers(cache), _layers(prefix), strict=True):
        pairs += [(found.keys, expected.keys), (found.values, expected.values)]
    return all(_is_close(model, found, expected) for found, expected in pairs)


def _read_alone(model: StandardizedTransformer, ids: Sequence[int]) -> Float[Tensor, "layer hidden"]:
    places = [Place("layers_output", layer) for layer in range(model.num_layers)]
    reading = Reading({place: lambda states: states[0, -1].to(model.device) for place in places})
    execute(model, {"input_ids": torch.tensor([list(ids)], device=model.device), "use_cache": False}, reading)
    return torch.stack([reading.taken[place] for place in places])


def _to_the_end(model: StandardizedTransformer, places: Sequence[Place]) -> set[Place]:
    """The places, and the last layer, up to which a pass fills the cache."""
    return {*places, Place("layers_output", model.anatomy.last.index)}


def _is_close(model: StandardizedTransformer, found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None or found.shape != expected.shape:
        return False
    tolerance = TOLERANCES.get(model.module.dtype, 1e-1) * max(1.0, float(expected.abs().max()))
    return bool((found - expected).abs().max() <= tolerance)
