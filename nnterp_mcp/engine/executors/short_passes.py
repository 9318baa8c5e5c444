"""Short passes over whole prompts on static buffers: on an accelerator captured once for each shape, then replayed.

The time of such a pass is that of its launches, and a graph replays them all at once. Tokens, positions, masks and the
entries to read are written into buffers before. Elsewhere the same passes run on the same buffers without a capture.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nnterp_mcp.engine.executors.capture import LaunchGraph, captures, refuse, try_capture
from nnterp_mcp.model.loading.trials import recall
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.wrapped import WrappedModel

_WHAT = "short passes"
"""The name of these captures in `session`."""

_SHORT = 2048
"""Padded tokens of a pass up to which its launches take longer than its arithmetic, about."""

_BUCKET = 16
"""Batches are as wide as a multiple of this many tokens, so that prompts of similar length share buffers."""

_PROBED, _BEYOND = 8, 4
"""Tokens of the text on which the masks are tried, and how far others go beyond each length that changes a model."""

_KEPT = 16
"""Shapes that are kept; the one that was not used for longest goes first."""

Buffers = Mapping[str, Tensor]
Compute = Callable[[Buffers], Sequence[Tensor]]


class ShortPasses:
    """The shapes of short passes over one model."""

    def __init__(self) -> None:
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()
        self._pool: Any = None

    def run(self, model: WrappedModel, key: Hashable, given: Buffers, compute: Compute) -> list[Tensor]:
        """Computes on buffers that hold what is given.

        Args:
            model: The model.
            key: All that the computation depends on apart from what is given.
            given: The tensors that it reads.
            compute: The computation, which launches the same for every content of the buffers.

        Returns:
            What it returned, copied.
        """
        key = (key, _state_of(model.module), tuple((name, value.shape, value.dtype) for name, value in given.items()))
        shape = self._shapes.pop(key, None) or _Shape({name: value.clone() for name, value in given.items()})
        self._shapes[key] = shape
        if len(self._shapes) > _KEPT:
            self._shapes.popitem(last=False)
        for name, value in given.items():
            shape.buffers[name].copy_(value)
        return [value.clone() for value in self._compute(model, shape, compute)]

    def _compute(self, model: WrappedModel, shape: _Shape, compute: Compute) -> Sequence[Tensor]:
        if shape.graph is not None:
            return shape.graph.replay()
        found = compute(shape.buffers)
        if not shape.ran or model.device.type != "cuda":  # what is lazy in a first run could not be captured
            shape.ran = True
            return found
        expected = [value.clone() for value in found]
        graph = try_capture(model, _WHAT, lambda: LaunchGraph(lambda: compute(shape.buffers), self._shared_pool()))
        if graph is None:
            return expected
        replayed = zip(graph.replay(), expected, strict=True)
        if not all(_agree(one, other, model.module.dtype) for one, other in replayed):
            refuse(model, _WHAT, "a replay differs from the pass itself")
            return expected
        shape.graph = graph
        return expected

    def _shared_pool(self) -> Any:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


@dataclass
class _Shape:
    """The buffers of one shape, whether it has run on them, and its graph once it has one."""

    buffers: dict[str, Tensor]
    ran: bool = False
    graph: LaunchGraph[Sequence[Tensor]] | None = None


_PASSES: WeakKeyDictionary[nn.Module, ShortPasses] = WeakKeyDictionary()


def short_passes(model: StandardizedTransformer, rows: int, columns: int) -> ShortPasses | None:
    """The short passes over a model; None where one of this size is better run as it is."""
    if rows * columns > _SHORT or not captures(model, _WHAT):
        return None
    lengths = sorted({_PROBED} | {mark.length + _BEYOND for mark in lengths_of(model.module).below(columns)})

    def is_exact(length: int) -> bool:
        situation = model.attention, length
        return recall(model.module, _WHAT, situation, 0, lambda: _try_static_inputs(model, length))

    return _PASSES.setdefault(model.module, ShortPasses()) if all(map(is_exact, lengths)) else None


def drop_graphs(model: WrappedModel) -> None:
    """Gives back the memory of a model's graphs and buffers."""
    _PASSES.pop(model.module, None)


def bucket(model: WrappedModel, rows: int, columns: int) -> int:
    """The columns of a batch of prompts: more than it needs where short passes share buffers."""
    width = -(-columns // _BUCKET) * _BUCKET
    if rows * width > _SHORT or not captures(model, _WHAT) or not model.can("batch"):
        return columns
    lengths = lengths_of(model.module)
    alike = lengths.share(columns, width) and lengths.below(width) == lengths.below(columns)
    return width if alike else columns


def static_inputs(
    model: StandardizedTransformer, ids: Int[Tensor, "row column"], mask: Int[Tensor, "row column"]
) -> dict[str, Tensor]:
    """The tensors that a pass over left-padded prompts reads: no code of the model has to look at them on the host.

    Args:
        model: The model.
        ids: The tokens.
        mask: 1 for each token and 0 for padding.
    """
    at = torch.arange(ids.shape[1], device=ids.device)
    read = (at[:, None] >= at) & mask[:, None].bool()
    near = at[:, None] - at
    windows = {getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.module.config).layers}
    masks = {
        "full_attention" if window is None else "sliding_attention": read if window is None else read & (near < window)
        for window in windows
    }
    shown = {name: _added(found, model.module.dtype) for name, found in masks.items()}
    return {"input_ids": ids, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0), **shown}


def arguments_of(buffers: Buffers) -> dict[str, Any]:
    """The arguments of the model's forward pass, from what `static_inputs` made."""
    masks = {name: buffers[name] for name in ("full_attention", "sliding_attention") if name in buffers}
    return {
        "input_ids": buffers["input_ids"],
        "position_ids": buffers["position_ids"],
        "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
        "use_cache": False,
    }


def _added(read: Bool[Tensor, "row query key"], dtype: torch.dtype) -> Tensor:
    """A mask as it is added to scores: (row, 1, query, key)."""
    nothing = torch.zeros(read.shape, dtype=dtype, device=read.device)
    return nothing.masked_fill(~read, torch.finfo(dtype).min)[:, None]


def _state_of(module: nn.Module) -> Hashable:
    """Identifies the state that a capture depends on: where the weights are, and how many hooks the modules have."""
    hooks, weights, waiting = 0, list[int](), [module]
    while waiting:
        part = vars(waiting.pop())  # every call does this: the public ways take ten times as long
        waiting += [inner for inner in part["_modules"].values() if inner is not None]
        hooks += len(part["_forward_hooks"]) + len(part["_forward_pre_hooks"])
        weights += [weight.data_ptr() for weight in part["_parameters"].values() if weight is not None]
    return hooks, tuple(weights)


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    largest = float(expected[expected.isfinite()].abs().max()) if expected.isfinite().any() else 0.0
    allowed = TOLERANCES.get(dtype, 1e-1) * max(largest, 1.0)
    return torch.allclose(found, expected, rtol=0.0, atol=allowed, equal_nan=True)


@torch.inference_mode()
def _try_static_inputs(model: StandardizedTransformer, length: int) -> bool:
    """Compares a pass over so many tokens with masks in buffers with a usual one, a padded row among them."""
    layers = DynamicCache(config=model.module.config).layers
    windows = {getattr(layer, "sliding_window", None) for layer in layers} - {None}
    if len(windows) > 1 or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return False
    ids = probe_ids(model.module, length)[:1].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, : ids.shape[1] // 2] = 0
    inputs = static_inputs(model, ids, mask)
    real = mask.bool()
    try:
        with model.standing_down():
            usual = {"input_ids": ids, "attention_mask": mask, "position_ids": inputs["position_ids"]}
            expected = model.module(**usual, use_cache=False).logits[real]
            found = model.module(**arguments_of(inputs)).logits[real]
    except Exception as error:  # whatever the modelling code raises, it does not take such masks
        if says_nothing(error):
            raise
        return False
    return _agree(found.float(), expected.float(), model.module.dtype)
