"""Decode steps on static buffers: on an accelerator each is captured once as a graph, and replayed from then on.

A step computes one new token of each row on keys and values in buffers of fixed length. What differs from step to step
(tokens, positions, mask) is written into buffers before a replay; operations are part of the capture. Elsewhere the
same steps run on the same buffers without a capture.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from nnterp_mcp.engine.edits import Edit, EditOfRuns, StateEdit
from nnterp_mcp.engine.executors.capture import LaunchGraph, captures, try_capture
from nnterp_mcp.engine.executors.execution import execute, last_column
from nnterp_mcp.engine.forward import NOTHING, Plan, PlannedPass
from nnterp_mcp.engine.kv_cache import cache_inputs
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.loading.trials import recall
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.sites import FACTS

STEPS = "decode steps"
"""The name of these captures in `session`."""

WORTHWHILE = 8
"""New tokens from which on a capture pays."""

_BUCKET = 64
"""Buffers hold a multiple of this many tokens, so that texts of similar length share them."""

_GRAPHS_KEPT = 4
"""Ways in which operations reach a step that are captured; more run uncaptured."""


class StaticSteps:
    """The steps of one batch after its prompts have been read.

    Args:
        model: The model; `takes_static_steps` holds for it.
        plan: The operations; `are_steady` holds for them.
        prompts: The prompt of each row.
        padding: Padded tokens before it.
        cache: The keys and values of the columns so far. They are copied.
        length: How many columns these are.
        room: How many columns there will be, at most.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        plan: Plan,
        prompts: Sequence[EncodedPrompt],
        padding: Sequence[int],
        cache: DynamicCache,
        length: int,
        room: int,
    ) -> None:
        self._model = model
        self._plan = plan
        self._prompts = prompts
        self._padding = padding
        self._length = length
        self._capture = captures_steps(model)
        self._graphs: dict[Hashable, LaunchGraph[Tensor]] = {}
        self._warm: set[Hashable] = set()
        room = -(-room // _BUCKET) * _BUCKET
        rows, device = len(prompts), model.device
        before = torch.tensor(padding, device=device)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions = (length - 1 - before)[:, None].contiguous()
        self._masks = _Masks(_windows(cache), before, length, room, model.module.dtype)
        self._inputs: dict[str, Any] = {
            "input_ids": self._ids,
            "position_ids": self._positions,
            "attention_mask": self._masks.inputs,
            **cache_inputs(model.module, _copy(cache, length, room)),
        }

    def next_logits(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocabulary"]:
        """The logits after one more token of each row; the next step overwrites them."""
        self._ids.copy_(tokens[:, None])
        self._positions.add_(1)
        self._masks.open_next()
        self._length += 1
        walk = PlannedPass(Window(self._prompts, self._padding, self._length - 1, self._length), self._plan, ())
        reached = tuple(_rows_reached(edit, walk.window) for edit in _edits(self._plan))
        if reached in self._graphs:
            return self._graphs[reached].replay()
        if not self._capture or reached not in self._warm or len(self._graphs) == _GRAPHS_KEPT:
            self._warm.add(reached)  # what is lazy in a first run could not be captured
            return self._run(walk)
        return self._captured(reached, walk)

    def _run(self, walk: PlannedPass) -> Tensor:
        logits = execute(self._model, self._inputs, walk, last_column)
        assert logits is not None
        return logits

    def _captured(self, reached: Hashable, walk: PlannedPass) -> Tensor:
        graph = try_capture(self._model, STEPS, lambda: LaunchGraph(lambda: self._run(walk)))
        if graph is None:
            self._capture = False
            return self._run(walk)
        self._graphs[reached] = graph
        return graph.replay()


class _Masks:
    """The attention masks of the newest token of each row, added to its scores: one mask for each kind of layer.

    Args:
        windows: The window of each layer; None where it reads everything.
        padding: Padded columns before each row.
        length: Columns so far.
        room: Columns of the buffers.
        dtype: What scores are computed in.

    Attributes:
        inputs: What the model takes for its attention mask.
    """

    def __init__(
        self, windows: Sequence[int | None], padding: Tensor, length: int, room: int, dtype: torch.dtype
    ) -> None:
        self._length = length
        self._unread = torch.finfo(dtype).min
        columns = torch.arange(room, device=padding.device)
        self._masks: dict[int | None, Tensor] = {}
        for window in dict.fromkeys(windows):
            closed = (columns < padding[:, None]) | (columns >= length)
            if window is not None:
                closed |= columns <= length - 1 - window
            mask = torch.zeros(closed.shape, dtype=dtype, device=padding.device).masked_fill(closed, self._unread)
            self._masks[window] = mask[:, None, None]
        whole = self._masks.get(None)
        slid = [mask for window, mask in self._masks.items() if window is not None]
        several = whole is not None and slid
        self.inputs = {"full_attention": whole, "sliding_attention": slid[0]} if several else (slid or [whole])[0]

    def open_next(self) -> None:
        """Lets the next column be read, and the one that leaves a window no more."""
        for window, mask in self._masks.items():
            mask[..., self._length] = 0
            if window is not None and self._length >= window:
                mask[..., self._length - window] = self._unread
        self._length += 1


def _windows(cache: DynamicCache) -> list[int | None]:
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]


def _copy(cache: DynamicCache, length: int, room: int) -> Cache:
    """The same keys and values at the beginning of buffers that are as long for every layer."""
    layers: list[StaticLayer] = []
    for given in cache.layers:
        assert isinstance(given, DynamicLayer)
        assert given.keys is not None
        assert given.values is not None
        layer = StaticLayer(room)
        layer.lazy_initialization(given.keys, given.values)
        kept = given.keys.shape[2]
        layer.keys[:, :, length - kept : length] = given.keys  # pyright: ignore[reportOptionalSubscript]
        layer.values[:, :, length - kept : length] = given.values  # pyright: ignore[reportOptionalSubscript]
        layer.cumulative_length.fill_(length)
        layers.append(layer)
    return Cache(layers=[*layers])


def _edits(plan: Plan) -> list[Edit]:
    return [edit for edits in plan.edits.values() for edit in edits]


def _rows_reached(edit: Edit, window: Window) -> tuple[int, ...]:
    """The rows whose newest token an edit reaches."""
    if isinstance(edit, EditOfRuns):
        return _rows_reached(edit.edit, window.of_owners(edit.owners))
    assert isinstance(edit, StateEdit)
    return tuple(window.select(edit.reach, 1).rows)


def are_steady(plan: Plan) -> bool:
    """True where operations do the same at every step that they reach alike, whatever the position."""
    edits = [edit.edit if isinstance(edit, EditOfRuns) else edit for edit in _edits(plan)]
    return all(isinstance(edit, StateEdit) and not FACTS[edit.place.site].grows for edit in edits)


def captures_steps(model: StandardizedTransformer) -> bool:
    """True where graphs of decode steps can be captured on the model's device."""
    return captures(model, STEPS)


def takes_static_steps(model: StandardizedTransformer) -> bool:
    """Compares a step on static buffers with one on the usual cache; tried once for each model."""
    return recall(model.module, STEPS, model.attention, 0, lambda: _try_static_step(model))


@torch.inference_mode()
def _try_static_step(model: StandardizedTransformer) -> bool:
    ids = probe_ids(model.module)
    length = ids.shape[1]
    cache = DynamicCache(config=model.module.config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return False
    if len({*_windows(cache)} - {None}) > 1:
        return False
    prompt = EncodedPrompt(0, "", ids[0].tolist(), [])
    try:
        with model.standing_down():
            model.module(input_ids=ids, **cache_inputs(model.module, cache))
            steps = StaticSteps(model, NOTHING, [prompt], [0], cache, length, length + 1)
            expected = model.module(input_ids=ids[:, :1], **cache_inputs(model.module, cache)).logits[:, -1].float()
        found = steps.next_logits(ids[:, 0])
    except Exception as error:  # whatever the modelling code raises, it does not take such buffers
        if says_nothing(error):
            raise
        return False
    allowed = TOLERANCES.get(model.module.dtype, 1e-1) * max(float(expected.abs().max()), 1.0)
    return bool((found - expected).abs().max() <= allowed)
