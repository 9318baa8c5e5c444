"""Many rows of one target prompt, each with its hidden state replaced at one position after one layer.

A row differs from the unpatched prompt only from the patched position and the patched layer on. What it has in common
with it is computed once: the keys and values of the tokens before the position, and the layers below the patch. A row
joins the batch at its own layer, as a copy of the unpatched row with its state put in.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnterp_mcp.engine.batching import run_halving
from nnterp_mcp.engine.executors.execution import Reading, execute, last_column
from nnterp_mcp.engine.forward import NOTHING, Plan, attention_for, run
from nnterp_mcp.engine.generation import end_ids, until_end
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.kv_cache import SharedCache, cache_inputs
from nnterp_mcp.engine.prefix_sharing import NO_SHARING, Sharing, find_cheapest_sharing
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.text.tokenization import EncodedPrompt

LOGITS_AT_ONCE = 1 << 24
"""Logits held at one time: rows run in batches of this many over the vocabulary."""

_SHARED_PER_TOKEN = 8
"""So many tokens whose keys and values are read take no more memory, at the least, than one that is computed."""


@dataclass(frozen=True)
class Target:
    """A prompt and the place in it where states are put.

    Attributes:
        ids: The prompt's tokens, without padding.
        position: Which of them is patched, from 0.
        index: The prompt's place in the request, by which operations choose prompts.
    """

    ids: tuple[int, ...]
    position: int
    index: int = 0


@dataclass(frozen=True)
class PatchedBatch:
    """Some of the rows, after they ran; still on the model's device.

    Attributes:
        rows: Which rows these are.
        logits: The logits after the target prompt's last token.
        continuations: What the model then says, greedily; the token that ended the text is among it.
        unpatched_logits: The same logits without any patch.
        unpatched_continuation: What the model says without any patch.
    """

    rows: list[int]
    logits: Float[Tensor, "row vocabulary"]
    continuations: list[list[int]]
    unpatched_logits: Float[Tensor, " vocabulary"]
    unpatched_continuation: list[int]


@torch.inference_mode()
def run_patched(
    model: StandardizedTransformer,
    target: Target,
    states: Float[Tensor, "row hidden"],
    layers: Sequence[int],
    *,
    max_new_tokens: int = 0,
    batch_tokens: int = 4096,
    plan: Plan = NOTHING,
    prefix: SharedCache | None = None,
) -> Iterator[PatchedBatch]:
    """Runs the target prompt once for each row, its state put in as the output of the row's layer.

    The patch acts while the prompt is read; tokens that are generated see it through their attention. How much the
    rows share is found by trying it once on the model: the cheapest way whose logits equal those of rows that share
    nothing.

    Args:
        model: The model.
        target: The target prompt and position.
        states: The state of each row.
        layers: The layer of each row.
        max_new_tokens: How many tokens to generate; none by default.
        batch_tokens: Tokens of the prompt and of its continuation in a batch, at most, over all its rows; those that
            rows share count for little where nothing is generated.
        plan: The operations in force, planned for a request that the target prompt belongs to. Rows then share
            nothing, and read everything again for each new token.
        prefix: Keys and values of the tokens before the position, if they are at hand; used where rows may share them.

    Yields:
        The rows, in batches; within and among batches in the order of their layers.
    """
    if max_new_tokens:
        model.require("causal")
    sharing = NO_SHARING if plan else find_sharing(model, target, generating=max_new_tokens > 1)
    prefix = (prefix or read_prefix(model, target)) if sharing.prefix else None
    shared = target.position if prefix is not None and max_new_tokens == 0 else 0
    length = len(target.ids) - shared + shared // _SHARED_PER_TOKEN + max_new_tokens
    size = max(1, min(batch_tokens // length, LOGITS_AT_ONCE // model.vocab_size) - 1)
    order = sorted(range(len(layers)), key=layers.__getitem__)

    def run_rows(rows: Sequence[int]) -> PatchedBatch:
        patch = _Patch(states[list(rows)], [layers[row] for row in rows], target.position, plan)
        logits, cache = _run(model, target, patch, sharing, prefix, goes_on=max_new_tokens > 1)
        said = _continue(model, target, patch, logits, cache, max_new_tokens)
        return PatchedBatch(list(rows), logits[1:], said[1:], logits[0], said[0])

    batches = [order[start : start + size] for start in range(0, len(order), size)]
    yield from run_halving(model, batches, run_rows, name_row(target))


@dataclass(frozen=True)
class _Patch:
    """The states of a batch's rows, in the order of their layers. Row 0 of the batch stays unpatched.

    Attributes:
        states: The state of each row.
        layers: The layer of each row.
        position: The token that is replaced.
        plan: The operations in force besides.
    """

    states: Float[Tensor, "row hidden"]
    layers: list[int]
    position: int
    plan: Plan = NOTHING

    def by_layer(self) -> dict[int, slice]:
        """The patched rows of each layer."""
        return {
            layer: slice(self.layers.index(layer), self.layers.index(layer) + self.layers.count(layer))
            for layer in dict.fromkeys(self.layers)
        }

    def join(
        self, hidden: Float[Tensor, "row position hidden"], rows: slice, position: int
    ) -> Float[Tensor, "more position hidden"]:
        """Appends rows to the batch: copies of the unpatched row, but for their states."""
        joining = hidden[:1].repeat(rows.stop - rows.start, 1, 1)
        joining[:, position] = self.states[rows].to(hidden)
        return torch.cat([hidden, joining])

    def put(
        self, hidden: Float[Tensor, "row position hidden"], rows: slice, position: int
    ) -> Float[Tensor, "row position hidden"]:
        """Replaces the states of rows that are in the batch from the start."""
        hidden = hidden.clone()
        hidden[1 + rows.start : 1 + rows.stop, position] = self.states[rows].to(hidden)
        return hidden


def read_prefix(model: StandardizedTransformer, target: Target) -> SharedCache:
    """Keys and values of the tokens before the patched position.

    Raises:
        Unsupported: A layer carries something else, which rows cannot share.
    """
    cache = SharedCache(config=model.module.config)
    if any(cache.is_linear):
        raise Unsupported(f"layers of {model.name} carry a state from token to token, not keys and values")
    if target.position > 0:
        ids = torch.tensor([target.ids[: target.position]], device=model.device)
        to_the_end = Reading({Place("layers_output", model.anatomy.last.index): lambda states: None})
        execute(model, {"input_ids": ids, **cache_inputs(model.module, cache)}, to_the_end)
    return cache


def _run(
    model: StandardizedTransformer,
    target: Target,
    patch: _Patch,
    sharing: Sharing,
    prefix: SharedCache | None,
    *,
    goes_on: bool,
) -> tuple[Float[Tensor, "row vocabulary"], SharedCache | None]:
    """The logits after the last token, the unpatched row's first; and the cache, where there is a prefix to share."""
    first = 0 if prefix is None else target.position
    rows = 1 if sharing.layers else 1 + len(patch.layers)
    ids = torch.tensor([target.ids[first:]], device=model.device).repeat(rows, 1)
    cache = None if prefix is None else prefix.fork(goes_on)
    if patch.plan:
        return _run_planned(model, target, ids, patch), None
    return _trace(model, ids, patch, target.position - first, sharing.layers, cache), cache


def _trace(
    model: StandardizedTransformer,
    ids: Int[Tensor, "row token"],
    patch: _Patch,
    position: int,
    joining: bool,
    cache: SharedCache | None,
) -> Float[Tensor, "row vocabulary"]:
    walk = _Patching(patch, position, joining)
    logits = execute(model, {"input_ids": ids, **_options(model, cache)}, walk, last_column)
    assert logits is not None
    return logits


class _Patching:
    """Puts the states of a patch in, each where its row is or joins."""

    def __init__(self, patch: _Patch, position: int, joining: bool) -> None:
        self._rows = {Place("layers_output", layer): rows for layer, rows in patch.by_layer().items()}
        self._put = patch.join if joining else patch.put
        self._position = position
        self.places = list(self._rows)

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """The rows of one layer."""
        return self._put(value, self._rows[place], self._position)


def _options(model: StandardizedTransformer, cache: SharedCache | None) -> dict[str, Any]:
    """What the forward pass is told: whose keys and values to use, and to form no logits that are not read."""
    options = cache_inputs(model.module, cache)
    if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        options["logits_to_keep"] = 1
    return options


def _continue(
    model: StandardizedTransformer,
    target: Target,
    patch: _Patch,
    logits: Float[Tensor, "row vocabulary"],
    cache: SharedCache | None,
    count: int,
) -> list[list[int]]:
    """What each row goes on to say: through the cache, or by reading everything again where there is none."""
    said = logits.new_empty((len(logits), 0), dtype=torch.long)
    ends = torch.tensor(sorted(end_ids(model)), device=logits.device)
    for step in range(count):
        said = torch.cat([said, logits.argmax(-1, keepdim=True)], dim=1)
        if step + 1 == count or bool(torch.isin(said, ends).any(1).all()):
            break
        logits = _step(model, target, patch, said, cache)
    return [until_end(row, ends.tolist()) for row in said.tolist()]


def _step(
    model: StandardizedTransformer,
    target: Target,
    patch: _Patch,
    said: Int[Tensor, "row token"],
    cache: SharedCache | None,
) -> Float[Tensor, "row vocabulary"]:
    kind = lengths_of(model.module).kind
    if cache is not None and kind(len(target.ids)) == kind(len(target.ids) + said.shape[1]):
        return _trace(model, said[:, -1:], _Patch(patch.states[:0], [], 0), 0, False, cache)
    prompt = torch.tensor([target.ids], device=said.device).repeat(len(said), 1)
    ids = torch.cat([prompt, said], dim=1)
    if patch.plan:
        return _run_planned(model, target, ids, patch)
    return _trace(model, ids, patch, target.position, False, None)


@dataclass(frozen=True)
class _Put:
    """The patch as an edit among others; what is put in is what the model goes on with."""

    place: Place
    patch: _Patch
    rows: slice
    needs: Sequence[Place] = ()

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data:
        rows = torch.arange(1 + self.rows.start, 1 + self.rows.stop, device=device)
        columns, states = torch.full_like(rows, self.patch.position), self.patch.states[self.rows]
        everything = {"heads": None, "neurons": None, "heads_first": False}
        return {"op": "replace", "rows": rows, "columns": columns, "value": states.to(device), **everything}


def _run_planned(
    model: StandardizedTransformer, target: Target, ids: Int[Tensor, "row token"], patch: _Patch
) -> Float[Tensor, "row vocabulary"]:
    """The same with operations in force, which come before the patch where they meet it."""
    puts = [_Put(Place("layers_output", layer), patch, rows) for layer, rows in patch.by_layer().items()]
    places = dict.fromkeys([*patch.plan.edits, *(put.place for put in puts)])
    edits = {
        place: [*patch.plan.edits.get(place, ()), *(put for put in puts if put.place == place)] for place in places
    }
    rows, length = ids.shape
    window = Window([EncodedPrompt(target.index, "", list(target.ids), [])] * rows, [0] * rows, 0, length)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    every, last = torch.arange(rows), torch.full((rows,), length - 1)
    with attention_for(model, patch.plan):
        logits = run(model, inputs, window, Plan(edits, patch.plan.labels), (), (every, last)).logits
    assert logits is not None
    return logits.float()


_Situation = tuple[str, bool, bool, bool]
"""How attention is computed, whether tokens follow the patched one, whether tokens are generated, and whether those
before it are computed alone as they are in the whole prompt."""
_tried: WeakKeyDictionary[nn.Module, dict[_Situation, tuple[int, Sharing]]] = WeakKeyDictionary()
"""What each model was found to allow, and the longest target prompt on which it was found."""


@torch.inference_mode()
def find_sharing(model: StandardizedTransformer, target: Target, generating: bool) -> Sharing:
    """The cheapest sharing that was seen to change nothing, on this target prompt or a longer one."""
    known = _tried.setdefault(model.module, {})
    kind = lengths_of(model.module).kind
    alike = kind(target.position) == kind(len(target.ids))
    situation = (model.attention, target.position < len(target.ids) - 1, generating, alike)
    length, sharing = known.get(situation, (0, NO_SHARING))
    if length < len(target.ids):
        sharing = _try_sharing(model, target, generating)
        known[situation] = len(target.ids), sharing
    return sharing


def _try_sharing(model: StandardizedTransformer, target: Target, generating: bool) -> Sharing:
    last = model.num_layers - 1
    layers = sorted({0, last // 3, 2 * last // 3, last})
    noise = torch.randn(len(layers), model.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.device)

    def run_rows(rows: Sequence[int], sharing: Sharing) -> Tensor:
        patch = _Patch(noise[list(rows)], [layers[row] for row in rows], target.position)
        return _attempt(model, target, patch, sharing, generating)

    return find_cheapest_sharing(model, range(len(layers)), run_rows, name_row(target))


def _attempt(
    model: StandardizedTransformer, target: Target, patch: _Patch, sharing: Sharing, generating: bool
) -> Float[Tensor, "step row vocabulary"]:
    """The logits after the prompt and, when generating, after one more token."""
    prefix = read_prefix(model, target) if sharing.prefix else None
    logits, cache = _run(model, target, patch, sharing, prefix, goes_on=generating)
    if not generating:
        return logits[None]
    said = torch.full((len(logits), 1), target.ids[0], device=logits.device)
    return torch.stack([logits, _step(model, target, patch, said, cache)])


def name_row(target: Target) -> str:
    """A batch of one row, as errors name it."""
    return f"a target prompt of {len(target.ids)} tokens with one patched row"


def resolve_target(ids: Sequence[int], position: int) -> Target:
    """A target from tokens and a position that counts from either end.

    Raises:
        InvalidRequest: The position does not exist.
    """
    if not -len(ids) <= position < len(ids):
        raise InvalidRequest(
            f"position {position} does not exist: the target prompt has positions 0 to {len(ids) - 1}."
        )
    return Target(tuple(ids), position % len(ids))
