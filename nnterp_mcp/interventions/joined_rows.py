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

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.interventions.patched_rows import LOGITS_AT_ONCE, Sharing
from nnterp_mcp.interventions.places import WHOLE_SEQUENCE, Place, assign, by_position, fetch, in_order
from nnterp_mcp.interventions.shared_cache import SharedCache
from nnterp_mcp.model.check import TOLERANCES
from nnterp_mcp.model.prompts import EncodedPrompt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.operations import Site

_ENOUGH = 128
"""Tokens from which on a pass on a CPU takes time for each more: rows of another first position begin a new batch."""

_NOTHING = Sharing(prefix=False, layers=False)
_LADDER = (Sharing(True, True), Sharing(True, False), Sharing(False, True))
"""What is tried, the cheapest first; sharing nothing is right for every model."""


@dataclass(frozen=True, eq=False)
class Input:
    """What one run reads.

    Attributes:
        prompt: The prompt.
        noise: What is added to the embedding of each of its tokens; None for nothing.
    """

    prompt: EncodedPrompt
    noise: Float[Tensor, "position hidden"] | None = None

    def __len__(self) -> int:
        """How many tokens the prompt has."""
        return len(self.prompt.ids)


@dataclass(frozen=True, eq=False)
class Put:
    """States that a row goes on with in the place of its own.

    Attributes:
        place: Where.
        positions: The tokens of the prompt, in ascending order.
        states: The state of each of them; of the heads alone that are put, where heads are named.
        heads: The heads; None for all, or where there are none.
    """

    place: Place
    positions: Sequence[int]
    states: Float[Tensor, "position *head width"]
    heads: Sequence[int] | None = None

    @property
    def entrance(self) -> Place:
        """The last place at which a row may join the batch: where the residual stream is all that it carries."""
        in_stream = self.place.site in ("layers_input", "layers_output")
        return self.place if in_stream else Place("layers_input", self.place.layer)

    def apply(self, value: Float[Tensor, "row position *head width"], row: int, first: int) -> None:
        """Puts the states into a row, in place.

        Args:
            value: The states of all rows.
            row: Which of them.
            first: The prompt's position that the first column holds.
        """
        columns = torch.tensor([at - first for at in self.positions], device=value.device)
        states = self.states.to(value)
        if self.heads is None:
            value[row, columns] = states
        else:
            value[row, columns[:, None], torch.tensor(list(self.heads), device=value.device)] = states


Row = Sequence[Put]
"""What is put into one row: at least one put."""


@dataclass(frozen=True)
class Observed:
    """One run, with nothing put in.

    Attributes:
        states: What was at each place that was asked for.
        logits: The logits after the last token.
    """

    states: dict[Place, Float[Tensor, "position *head width"]]
    logits: Float[Tensor, " vocabulary"]


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


@torch.inference_mode()
def observe(model: StandardizedTransformer, given: Input, places: Sequence[Place]) -> Observed:
    """Runs an input once and keeps what is at some places, and its logits."""
    walk = _Walk(model, (), {}, frozenset(), places, 0, given.noise)
    taken, logits = _trace(model, _ids(model, given), walk, _options(model, None))
    return Observed({place: value[0] for place, value in zip(walk.reads, taken, strict=True)}, logits[0])


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
    ) -> None:
        self._model = model
        self._base = base
        self._held = frozenset(held)
        self._reads = reads
        self._logits = logits
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> Iterator[RowBatch]:
        """Runs rows, in batches; those with the same first position stand together, in the order of their layers."""
        if rows:
            sharing = self._find_sharing(rows)
            for batch in self._fill(rows, sharing):
                yield self._run(rows, batch, sharing, self._reads, self._logits)

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
        walk = _Walk(self._model, chosen, joins, self._held, reads, first, self._base.noise)
        ids = _ids(self._model, self._base)[:, first:].repeat(1 if joins else 1 + len(chosen), 1)
        options = _options(self._model, self._prefix_until(first) if first else None)
        taken, found = (_trace if logits else _trace_until)(self._model, ids, walk, options)
        columns = len(self._base) - first
        states = {place: value[1:, -columns:] for place, value in zip(walk.reads, taken, strict=True)}
        return RowBatch(list(order), None if found is None else found[1:], states, first)

    @cached_property
    def _cache(self) -> SharedCache:
        """Keys and values of the whole input.

        Raises:
            Unsupported: A layer carries something else, which rows cannot share.
        """
        cache = SharedCache(config=self._model.module.config)
        if any(cache.is_linear):
            raise Unsupported(f"layers of {self._model.name} carry a state from token to token, not keys and values")
        last = [Place("layers_output", self._model.anatomy.last.index)]
        walk = _Walk(self._model, (), {}, frozenset(), last, 0, self._base.noise)
        _trace_until(self._model, _ids(self._model, self._base), walk, _options(self._model, cache))
        return cache

    def _prefix_until(self, position: int) -> SharedCache:
        cache = self._cache.fork(goes_on=False)
        cache.crop(position - len(self._base))
        return cache

    def _find_sharing(self, rows: Sequence[Row]) -> Sharing:
        """What is known of this model at these sites for inputs as long as this, or else what is found by trying."""
        known = _tried.setdefault(self._model.module, {})
        sites: frozenset[Site] = frozenset(put.place.site for row in rows for put in row)
        situation = (self._model.attention, sites, bool(self._held), any(_first(row) for row in rows))
        length, sharing = known.get(situation, (0, _NOTHING))
        if length < len(self._base):
            sharing = self._try_sharing(_noisy(_sample(rows)))
            known[situation] = len(self._base), sharing
        return sharing

    def _try_sharing(self, rows: Sequence[Row]) -> Sharing:
        expected = self._attempt(rows, _NOTHING)
        tolerance = TOLERANCES.get(self._model.module.dtype, 1e-1) * max(1.0, float(expected.abs().max()))
        for sharing in _LADDER:
            try:
                found = self._attempt(rows, sharing)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever the modelling code raises, it does not allow this
                continue
            if found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance):
                return sharing
        return _NOTHING

    def _attempt(self, rows: Sequence[Row], sharing: Sharing) -> Float[Tensor, "row vocabulary"]:
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
    options: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        options["logits_to_keep"] = 1
    return options


def _trace(
    model: StandardizedTransformer, ids: Tensor, walk: _Walk, options: Mapping[str, Any]
) -> tuple[list[Tensor], Float[Tensor, "row vocabulary"]]:
    """What was read, and the logits after the last token."""
    with model.trace(input_ids=ids, **options):
        taken = nnsight.save(walk.take())
        logits = nnsight.save(model.logits[:, -1].float())
    return taken, logits


def _trace_until(
    model: StandardizedTransformer, ids: Tensor, walk: _Walk, options: Mapping[str, Any]
) -> tuple[list[Tensor], None]:
    """What was read; the pass ends at the last place that is touched."""
    with model.trace(input_ids=ids, **options) as tracer:
        taken = nnsight.save(walk.take())
        tracer.stop()
    return taken, None


class _Walk:
    """The way of one pass through the places at which something is put, held or read, or rows join.

    Row 0 of the batch is the unpatched input; the others follow in the order in which they join.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        rows: Sequence[Row],
        joins: Mapping[Place, int],
        held: frozenset[Place],
        reads: Sequence[Place],
        first: int,
        noise: Float[Tensor, "position hidden"] | None,
    ) -> None:
        self.reads = in_order(reads)
        self._model = model
        self._joins = joins
        self._held = held
        self._first = first
        self._noise = noise
        self._puts: dict[Place, list[tuple[int, Put]]] = {}
        for index, row in enumerate(rows, start=1):
            for put in row:
                self._puts.setdefault(put.place, []).append((index, put))

    def take(self) -> list[Tensor]:
        """Makes the changes and returns what was read, in the order of `reads`; inside a trace."""
        taken: list[Tensor] = []
        noise = [] if self._noise is None else [Place("token_embeddings")]
        for place in in_order([*noise, *self._joins, *self._held, *self.reads, *self._puts]):
            came = fetch(self._model, place)
            value = self._join(place, came)
            if place in self.reads:
                taken.append(by_position(value, place.site).clone())
            value = self._put(place, self._hold(place, self._disturb(place, value)))
            if value is not came:
                assign(self._model, place, value)
        return taken

    def _disturb(self, place: Place, value: Tensor) -> Tensor:
        if self._noise is None or place.site != "token_embeddings":
            return value
        return value + self._noise[self._first :].to(value)

    def _join(self, place: Place, value: Float[Tensor, "row position *rest"]) -> Tensor:
        """Appends rows to the batch: copies of the unpatched one."""
        more = self._joins.get(place, 0)
        return torch.cat([value, value[:1].expand(more, *value.shape[1:])]) if more else value

    def _hold(self, place: Place, value: Float[Tensor, "row position *rest"]) -> Tensor:
        """Gives every row what the unpatched one has."""
        return value[:1].repeat(len(value), *[1] * (value.ndim - 1)) if place in self._held else value

    def _put(self, place: Place, value: Tensor) -> Tensor:
        if place not in self._puts:
            return value
        value = value.clone()
        for row, put in self._puts[place]:
            put.apply(by_position(value, place.site), row, 0 if place.site in WHOLE_SEQUENCE else self._first)
        return value
