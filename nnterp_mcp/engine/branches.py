"""Many rows of one input, each with states of its own put in, at any site of any layer.

A row is the unpatched input but for what its puts change, and they change nothing before their first position and
nothing below their first layer. So the keys and values before that position are computed once for all rows, and a row
joins the batch where its first put is, as a copy of the unpatched row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.batching import run_halving
from nnterp_mcp.engine.executors.execution import execute, last_column
from nnterp_mcp.engine.forward import attention_for
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.kv_cache import SharedCache, cache_inputs
from nnterp_mcp.engine.patched_rows import LOGITS_AT_ONCE
from nnterp_mcp.engine.prefix_sharing import NO_SHARING, Sharing, find_cheapest_sharing
from nnterp_mcp.engine.puts import Input, Row, Walk
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.sites import Site

_ENOUGH = 128
"""Tokens from which on a pass on a CPU takes time for each more: rows of another first position begin a new batch."""


@dataclass(frozen=True)
class Observed:
    """One run, with nothing put in.

    Attributes:
        states: What was at each place that was asked for.
        logits: The logits after the last token.
        cache: The keys and values of all its tokens; None where they were not asked for, or rows cannot share them.
    """

    states: dict[Place, Float[Tensor, "position *head width"]]
    logits: Float[Tensor, " vocabulary"]
    cache: SharedCache | None = None

    def __len__(self) -> int:
        """How many bytes it holds."""
        cached = [] if self.cache is None else [states for layer in self.cache for states in layer[:2]]
        return sum(held.nbytes for held in (*self.states.values(), self.logits, *cached) if held is not None)


@dataclass(frozen=True)
class RowBatch:
    """Some rows, after they ran; on the model's device.

    Attributes:
        rows: Which rows these are.
        logits: The logits after the last token; None where only states were asked for.
        states: What was at each place that was asked for, before anything was put or held there, from position
            `first` on. A row that had not joined yet is missing: it was still the unpatched input.
        first: The first position that was computed.
    """

    rows: list[int]
    logits: Float[Tensor, "row vocabulary"] | None
    states: dict[Place, Float[Tensor, "joined position *head width"]]
    first: int


@runs_elsewhere
@torch.inference_mode()
def observe(
    model: StandardizedTransformer, given: Input, places: Sequence[Place], *, caching: bool = False
) -> Observed:
    """Runs an input once and keeps what is at some places, and its logits.

    Args:
        model: The model.
        given: The input.
        places: The places.
        caching: Whether to keep keys and values too, for rows of this input; done once rows of the model were seen to
            share them.
    """
    shares = caching and any(sharing.prefix for sharing in known_sharing(model.module))
    cache = SharedCache(config=model.module.config) if shares else None
    walk = Walk(given, reads=places)
    logits = _execute(model, _ids(model, given), walk, _options(model, cache), True)
    assert logits is not None
    return Observed({place: value[0] for place, value in zip(walk.reads, walk.taken, strict=True)}, logits[0], cache)


class RowRunner:
    """Runs rows of one input.

    How much the rows share is found by trying it once on the model, with noise put in at these sites: the cheapest way
    whose logits equal those of rows that share nothing.

    Args:
        model: The model.
        base: The input.
        held: Places at which every row has what the unpatched input has, but for what is put there.
        reads: Places at which to keep what the rows have.
        logits: Whether the logits are wanted; without them the pass ends at the last place that is read.
        batch_tokens: Tokens in a batch, at most, over all its rows.
        cache: Keys and values of the whole input, where a run of it kept them.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        base: Input,
        *,
        held: Sequence[Place] = (),
        reads: Sequence[Place] = (),
        logits: bool = True,
        batch_tokens: int = 4096,
        cache: SharedCache | None = None,
    ) -> None:
        self._given_cache = cache
        self._model = model
        self._base = base
        self._held = frozenset(held)
        self._reads = reads
        self._logits = logits
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> Iterator[RowBatch]:
        """Runs rows, in batches; those with the same first position stand together, in the order of their layers.

        A batch that does not fit the memory is halved.

        Raises:
            OutOfMemory: One row alone does not fit.
        """
        if not rows:
            return
        sharing = self._find_sharing(rows)

        def run(batch: Sequence[int]) -> RowBatch:
            return self._run(rows, batch, sharing, self._reads, self._logits)

        yield from run_halving(self._model, self._fill(rows, sharing), run, self._one_row)

    @property
    def _one_row(self) -> str:
        return f"a prompt of {len(self._base)} tokens with one patched row"

    def _fill(self, rows: Sequence[Row], sharing: Sharing) -> Iterator[list[int]]:
        """Batches that compute little twice: a new one begins where the last is large enough and less is to be run."""
        order = sorted(range(len(rows)), key=lambda row: (_first(rows[row]), _entrance(rows[row]).turn))
        enough = _ENOUGH if self._model.device.type == "cpu" else self._batch_tokens
        batch: list[int] = []
        for row in order:
            width = len(self._base) - (_first(rows[batch[0]]) if batch and sharing.prefix else 0)
            size = max(1, min(self._batch_tokens // width, LOGITS_AT_ONCE // self._model.vocab_size) - 1)
            shorter = sharing.prefix and bool(batch) and _first(rows[row]) > _first(rows[batch[0]])
            if len(batch) >= size or (shorter and len(batch) * width >= enough):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _run(
        self, rows: Sequence[Row], batch: Sequence[int], sharing: Sharing, reads: Sequence[Place], logits: bool
    ) -> RowBatch:
        order = sorted(batch, key=lambda row: _entrance(rows[row]).turn)
        chosen = [rows[row] for row in order]
        first = min(map(_first, chosen)) if sharing.prefix else 0
        joins: dict[Place, int] = {}
        for row in chosen if sharing.layers else ():
            joins[_entrance(row)] = joins.get(_entrance(row), 0) + 1
        walk = Walk(self._base, chosen, joins=joins, held=self._held, reads=reads, first=first)
        ids = _ids(self._model, self._base)[:, first:].repeat(1 if joins else 1 + len(chosen), 1)
        options = _options(self._model, self._prefix_until(first) if first else None)
        found = _execute(self._model, ids, walk, options, logits)
        columns = len(self._base) - first
        states = {place: value[1:, -columns:] for place, value in zip(walk.reads, walk.taken, strict=True)}
        return RowBatch(list(order), None if found is None else found[1:], states, first)

    @cached_property
    def _cache(self) -> SharedCache:
        """Keys and values of the whole input.

        Raises:
            Unsupported: A layer carries something else, which rows cannot share.
        """
        if self._given_cache is not None:
            return self._given_cache
        cache = SharedCache(config=self._model.module.config)
        if any(cache.is_linear):
            raise Unsupported(f"layers of {self._model.name} carry a state from token to token, not keys and values")
        last = [Place("layers_output", self._model.anatomy.last.index)]
        walk = Walk(self._base, reads=last)
        _execute(self._model, _ids(self._model, self._base), walk, _options(self._model, cache), False)
        return cache

    def _prefix_until(self, position: int) -> SharedCache:
        cache = self._cache.fork(goes_on=False)
        cache.crop(position - len(self._base))
        return cache

    def _find_sharing(self, rows: Sequence[Row]) -> Sharing:
        """What is known of this model at these sites for inputs as long as this, or else what is found by trying.

        What operations in force allow is another matter for each of them, and is always tried.
        """
        if self._base.plan:
            return self._try_sharing(rows)
        known = _tried.setdefault(self._model.module, {})
        sites: frozenset[Site] = frozenset(put.place.site for row in rows for put in row)
        situation = (self._model.attention, sites, bool(self._held), any(_first(row) for row in rows))
        length, sharing = known.get(situation, (0, NO_SHARING))
        if length < len(self._base):
            sharing = self._try_sharing(rows)
            known[situation] = len(self._base), sharing
        return sharing

    def _try_sharing(self, rows: Sequence[Row]) -> Sharing:
        return find_cheapest_sharing(self._model, _noisy(_sample(rows)), self._logits_of, self._one_row)

    def _logits_of(self, rows: Sequence[Row], sharing: Sharing) -> Float[Tensor, "row vocabulary"]:
        done = self._run(rows, range(len(rows)), sharing, (), True)
        assert done.logits is not None
        return done.logits[torch.tensor(done.rows).argsort()]


_Situation = tuple[str, frozenset[Site], bool, bool]
"""How attention is computed, where something is put, whether places are held, whether tokens precede the first put."""
_tried: WeakKeyDictionary[nn.Module, dict[_Situation, tuple[int, Sharing]]] = WeakKeyDictionary()
"""What each model was found to allow, and the longest input on which it was found."""


def known_sharing(module: nn.Module) -> list[Sharing]:
    """What was found of a model so far, in each situation that came up."""
    return [sharing for _, sharing in _tried.get(module, {}).values()]


def forget(module: nn.Module) -> None:
    """Forgets what was found of a model, whose code or weights have changed."""
    _tried.pop(module, None)


def _first(row: Row) -> int:
    return min(put.positions[0] for put in row)


def _entrance(row: Row) -> Place:
    return min((put.entrance for put in row), key=lambda place: place.turn)


def _sample(rows: Sequence[Row], count: int = 4) -> list[Row]:
    """A few rows from first to last in the order of their layers; those that come late in the prompt, if any do."""
    late = max(map(_first, rows))
    order = sorted((row for row in rows if _first(row) == late or not _first(row)), key=lambda row: _entrance(row).turn)
    order = [row for row in order if _first(row)] or order
    return [order[round(at * (len(order) - 1) / (count - 1))] for at in range(count)]


def _noisy(rows: Sequence[Row]) -> list[Row]:
    """Rows with noise in the place of their states, so that nothing hides what sharing does."""
    generator = torch.Generator().manual_seed(0)
    return [
        [
            replace(put, states=torch.randn(put.states.shape, generator=generator).to(put.states) * _size(put.states))
            for put in row
        ]
        for row in rows
    ]


def _size(states: Tensor) -> float:
    return float(states.float().square().mean().sqrt()) or 1.0


def _ids(model: StandardizedTransformer, given: Input) -> Int[Tensor, "1 token"]:
    return torch.tensor([given.prompt.ids], device=model.device)


def _options(model: StandardizedTransformer, cache: SharedCache | None) -> dict[str, Any]:
    """What the forward pass is told: whose keys and values to use, and to form no logits that are not read."""
    options = cache_inputs(model.module, cache)
    if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        options["logits_to_keep"] = 1
    return options


def _execute(
    model: StandardizedTransformer, ids: Tensor, walk: Walk, options: Mapping[str, Any], logits: bool
) -> Float[Tensor, "row vocabulary"] | None:
    """The logits after the last token, if they are wanted; else the pass ends at the last place that is touched."""
    with attention_for(model, walk.plan):
        return execute(model, {"input_ids": ids, **options}, walk, last_column if logits else None)
