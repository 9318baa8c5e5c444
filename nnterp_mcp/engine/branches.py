"""Branches: many continuations of one input that differ from some hook point and some position on.

Each row is the input with edits of its own, which change nothing before their first position and nothing below their
first hook point. So the keys and values before that position are computed once for all rows, and a row joins the batch
where its first edit is, as a copy of the unedited row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.attention_edits import reads_ahead
from nnterp_mcp.engine.batching import LOGITS_AT_ONCE, rows_at_most, run_halving
from nnterp_mcp.engine.branch_pass import BranchPass, Input
from nnterp_mcp.engine.edits import Reached, StateEdit
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.forward import LogitReduction, attention_for
from nnterp_mcp.engine.generation import end_ids, until_end
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.kv_cache import SharedCache, takes_rows
from nnterp_mcp.engine.observation import Observed, Reference, ids_of, read_prefix, reduce_logits, run_branch_pass
from nnterp_mcp.engine.prefix_sharing import SHARED, Sharing, find_cheapest_sharing
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload, tokens_cached
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.loading.trials import recall
from nnterp_mcp.model.memory import free, of_pass
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.request.sites import Site

_TOGETHER = 16
"""Rows that share a batch however long they are, where the memory allows it: each batch runs the unedited input too."""

_SHARED_PER_TOKEN = 8
"""So many tokens whose keys and values are read take no more memory, at the least, than one that is computed."""

_ENOUGH = 128
"""Tokens from which on a pass on a CPU takes time for each more: rows of another first position begin a new batch."""

DEFAULTS = Workload(())
"""The size of batches where no request says another."""

_IN_STREAM: frozenset[Site] = frozenset({"token_embeddings", "layers_input", "layers_output"})
"""Sites at which the residual stream is all that a row carries."""


@dataclass(frozen=True)
class BranchBatch:
    """Some rows, after they ran; on the model's device.

    Attributes:
        rows: Which rows these are.
        logits: The logits after the input's last token; empty where only states were asked for.
        continuations: The tokens generated after each row, greedily; the one that ended the text is among them.
        base_continuation: The tokens generated after the unedited input.
        states: The states at each hook point that was asked for, before anything was frozen or edited there by a row,
            from position `first` on. A row that had not joined yet is missing: it was still the unedited input.
        first: The first position that was computed.
        numbers: What the logits were reduced to, where that was asked for: of the unedited input and the rows.
    """

    rows: list[int]
    logits: Float[Tensor, "row vocabulary"]
    continuations: list[list[int]]
    base_continuation: list[int]
    states: dict[Place, Float[Tensor, "joined position *head width"]]
    first: int
    numbers: Data


class Branches:
    """Rows of one input.

    How much the rows share is found by trying it once on the model, with noise for their edits: the cheapest way whose
    logits equal those of rows that share nothing.

    Args:
        model: The model.
        base: The input.
        edits: The edits of all rows. Their reaches name rows, by any numbers, where those of an operation name prompts.
        frozen: Hook points at which every row has the states of the unedited input, but for its own edits there.
        reads: Hook points whose states are returned.
        logits: Compute logits; without them the pass ends at the last hook point.
        reduction: Given the rows of a batch in their order, returns the reduction of all its logits, of which those of
            the unedited input are the first.
        reference: The run with which the reduction compares.
        max_new_tokens: How many tokens to generate.
        work: The request, for the most tokens of a batch over all its rows; those that rows share count for little
            where nothing is generated.
        own: The run of the input without branches, where there was one: its keys and values are the prefix.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        base: Input,
        edits: Sequence[StateEdit],
        *,
        frozen: Collection[Place] = (),
        reads: Sequence[Place] = (),
        logits: bool = True,
        reduction: Callable[[Sequence[int]], LogitReduction] | None = None,
        reference: Reference | None = None,
        max_new_tokens: int = 0,
        work: Workload = DEFAULTS,
        own: Observed | None = None,
    ) -> None:
        self.model = model
        self.base = base
        self.edits = edits
        self.reads = reads
        self.reduction = reduction if logits else None
        self.reference = reference
        self.new_tokens = max_new_tokens
        self.batch_tokens = work.batch_tokens
        self._frozen = frozen
        self.logits = logits
        self.own = own
        self._prefix = None if own is None else own.cache
        self._one_row = f"a prompt of {len(base)} tokens with one patched row"
        self._first: dict[int, int] = {}
        self._entrance: dict[int, Place] = {}
        for edit in edits:
            entrance = edit.place if edit.place.site in _IN_STREAM else Place("layers_input", edit.place.layer)
            for row, positions in edit.reach.positions.items():
                self._first[row] = min(positions[0], self._first.get(row, positions[0]))
                self._entrance[row] = min(entrance, self._entrance.get(row, entrance), key=lambda at: at.turn)

    @torch.inference_mode()
    def run(self) -> Iterator[BranchBatch]:
        """Runs the rows that an edit reaches, in batches: by their first position, then by their first hook point.

        A batch that does not fit the memory is halved.

        Raises:
            OutOfMemory: One row alone does not fit.
        """
        if not self._first:
            return
        if self.new_tokens:
            self.model.require("causal")
        yield from run_branches(self.model, self)

    @property
    def rows(self) -> Collection[int]:
        """The rows that an edit reaches."""
        return self._first.keys()

    def compute(self) -> Iterator[BranchBatch]:
        """Runs the rows on this machine."""
        sharing = self.sharing
        batches = self.fill(sharing)
        yield from run_halving(self.model, batches, lambda rows: self._compute(rows, sharing), self._one_row)

    @cached_property
    def sharing(self) -> Sharing:
        """The largest share of the pass that rows can have in common exactly.

        The way is known from other inputs; whether early states depend on later tokens is a matter of this one's edits.
        """
        late, length = max(self._first.values()), len(self.base)
        kind = lengths_of(self.model.module).kind
        sites: list[Site] = list(dict.fromkeys(edit.place.site for edit in self.edits))
        situation = (
            self.model.attention,
            frozenset(sites),
            bool(self._frozen),
            late > 0,
            late < length - 1,
            self.new_tokens > 1,
            kind(late) == kind(length),
            self.base.operations,
        )
        found = recall(self.model.module, SHARED, situation, length, lambda: astuple(self._try_sharing(sites, late)))
        known, edits = Sharing(*found), chain.from_iterable(self.base.edits.values())
        return replace(known, prefix=known.prefix and not any(map(reads_ahead, edits)))

    @torch.inference_mode()
    def _try_sharing(self, sites: Sequence[Site], position: int) -> Sharing:
        places = [place for site in sites for place in _spread(self.model, site)]
        edits = [StateEdit(place, Reach({row: [position]}), _Noise()) for row, place in enumerate(places)]
        trial = Branches(self.model, self.base, edits, frozen=self._frozen, max_new_tokens=self.new_tokens)
        return find_cheapest_sharing(
            self.model, range(len(places)), partial(try_branches, self.model, trial), self._one_row
        )

    def logits_of(self, rows: Sequence[int], sharing: Sharing) -> Float[Tensor, "step row vocabulary"]:
        """The logits after the input and, where tokens are generated, after one more token."""
        with attention_for(self.model, self.base.plan):
            order, logits, cache, _ = self._read(rows, sharing)
            if self.new_tokens < 2:
                return logits[None]
            said = torch.full((len(logits), 1), self.base.prompt.ids[0], device=logits.device)
            return torch.stack([logits, self._step(order, said, cache)])

    def fill(self, sharing: Sharing) -> Iterator[list[int]]:
        """Batches that compute little twice: a new one begins where the last is large enough and less is to be run."""
        enough = _ENOUGH if self.model.device.type == "cpu" else self.batch_tokens
        most, stepping = LOGITS_AT_ONCE // self.model.vocab_size, rows_at_most(self.batch_tokens, self.model.vocab_size)
        if self.new_tokens > 1:
            most = min(stepping, tokens_cached(self.model) // (len(self.base) + self.new_tokens))
        patterns = self.model.attention == "eager"
        room = free(self.model.device) // 2 // of_pass(self.model, 1, len(self.base), patterns)
        together = min(1 + _TOGETHER, room, stepping)
        batch: list[int] = []
        for row in sorted(self._first, key=lambda row: (self._first[row], self._entrance[row].turn)):
            shared = self._first[batch[0]] if batch and sharing.prefix else 0
            width = len(self.base) - shared + shared // _SHARED_PER_TOKEN
            full = len(batch) >= max(1, min(max(self.batch_tokens // width, together), most) - 1)
            shorter = sharing.prefix and bool(batch) and self._first[row] > self._first[batch[0]]
            if full or (shorter and len(batch) * width >= enough):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _compute(self, rows: Sequence[int], sharing: Sharing) -> BranchBatch:
        with attention_for(self.model, self.base.plan):
            order, logits, cache, visitor = self._read(rows, sharing)
            numbers = {} if self.reduction is None else reduce_logits(self.reduction(order), logits, self.reference)
            said = self._continue(order, logits, cache)
        states = {place: value[1:] for place, value in visitor.states.items()}
        return BranchBatch(order, logits[1:], said[1:], said[0], states, visitor.first, numbers)

    def _read(
        self, rows: Sequence[int], sharing: Sharing
    ) -> tuple[list[int], Float[Tensor, "row vocabulary"], SharedCache | None, BranchPass]:
        """Reads the input: the rows in their order in the batch, all logits, the unedited ones first, and a cache."""
        order, visitor, present = self.lay_out(rows, sharing)
        first = visitor.first
        caching = sharing.prefix and (first > 0 or self.new_tokens > 1)
        cache = self._prefix_until(first) if caching else None
        ids = ids_of(self.model, self.base)[:, first:].repeat(present, 1)
        logits = run_branch_pass(self.model, ids, visitor, cache, logits=self.logits)
        return order, torch.empty(0, 0, device=ids.device) if logits is None else logits, cache, visitor

    def lay_out(self, rows: Sequence[int], sharing: Sharing) -> tuple[list[int], BranchPass, int]:
        """A batch of rows: their order, the pass over them, and how many rows it begins with.

        Args:
            rows: The rows.
            sharing: How much they share.
        """
        order = sorted(rows, key=lambda row: self._entrance[row].turn)
        first = min(self._first[row] for row in order) if sharing.prefix else 0
        joins: dict[Place, int] = {}
        for row in order if sharing.layers else ():
            joins[self._entrance[row]] = joins.get(self._entrance[row], 0) + 1
        visitor = BranchPass(
            self.base, self.edits, order, joins=joins, frozen=self._frozen, reads=self.reads, first=first
        )
        return order, visitor, 1 if joins else 1 + len(order)

    def _prefix_until(self, position: int) -> SharedCache:
        if self._prefix is None:
            self._prefix = read_prefix(self.model, self.base, max(self._first.values()))
        cache, surplus = self._prefix.fork(self.new_tokens > 1), self._prefix.get_seq_length() - position
        if not surplus:
            return cache
        try:
            cache.crop(-surplus)
        except RuntimeError:  # a sliding window no longer has the earlier tokens
            return read_prefix(self.model, self.base, position).fork(self.new_tokens > 1)
        return cache

    def _continue(
        self, order: Sequence[int], logits: Float[Tensor, "row vocabulary"], cache: SharedCache | None
    ) -> list[list[int]]:
        """The tokens generated after each row, the unedited one first."""
        ends, rows, ended = end_ids(self.model), list(range(1 + len(order))), set[int]()
        said: list[list[int]] = [[] for _ in rows]
        written = logits.new_empty((len(rows), 0), dtype=torch.long)
        leaving = cache is None or takes_rows(self.model.module)
        for step in range(self.new_tokens):
            written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
            for row, token in zip(rows, written[:, -1].tolist(), strict=True):
                said[row].append(token)
            ended |= {row for row in rows if said[row][-1] in ends}
            if step + 1 == self.new_tokens or ended.issuperset(rows):
                break
            staying = [at for at, row in enumerate(rows) if row == 0 or row not in ended]  # row 0 is the unedited one
            if leaving and len(staying) < len(rows):
                rows, written = [rows[at] for at in staying], written[staying]
                if cache is not None:
                    cache.select(staying)
            logits = self._step([order[row - 1] for row in rows[1:]], written, cache)
        return [until_end(row, ends) for row in said]

    def _step(
        self, order: Sequence[int], said: Int[Tensor, "row token"], cache: SharedCache | None
    ) -> Float[Tensor, "row vocabulary"]:
        """The logits after the newest token: from the cache, or by reading everything again where there is none."""
        kind = lengths_of(self.model.module).kind
        length = len(self.base) + said.shape[1]
        if cache is None or kind(len(self.base)) != kind(length):
            ids = torch.cat([ids_of(self.model, self.base).repeat(len(said), 1), said], dim=1)
            visitor = BranchPass(self.base, self.edits, order, length=length)
            cache = None
        else:
            ids = said[:, -1:]
            visitor = BranchPass(self.base, self.edits, order, first=length - 1, length=length)
        logits = run_branch_pass(self.model, ids, visitor, cache, logits=True)
        assert logits is not None
        return logits


@executed_remotely
def run_branches(model: StandardizedTransformer, branches: Branches) -> Iterator[BranchBatch]:
    """Runs rows, in batches."""
    return branches.compute()


@executed_remotely
def try_branches(
    model: StandardizedTransformer, branches: Branches, rows: Sequence[int], sharing: Sharing
) -> Float[Tensor, "step row vocabulary"]:
    """The logits of rows, or enough of them to tell whether they are right."""
    return branches.logits_of(rows, sharing)


def _spread(model: StandardizedTransformer, site: Site) -> list[Place]:
    """A few hook points of a site, from the first layer that has it to the last."""
    if site == "token_embeddings":
        return [Place(site)]
    having: list[Place] = []
    for layer in range(model.num_layers):
        try:
            require_place(model, Place(site, layer))
        except Unsupported:
            continue
        having.append(Place(site, layer))
    last = len(having) - 1
    return [having[at] for at in sorted({0, last // 3, 2 * last // 3, last})]


@dataclass(frozen=True)
class _Noise:
    """Random states, the same ones for a row and position in every pass."""

    def resolve(self, states: Reached) -> Data:
        """A state for each entry."""
        dice = [torch.Generator().manual_seed(hash(entry)) for entry in states.chosen.entries]
        return {"op": "replace", "value": torch.stack([torch.randn(states.shape[2:], generator=one) for one in dice])}
