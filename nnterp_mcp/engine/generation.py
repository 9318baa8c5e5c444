"""Generates text with interventions at every step.

Each step is a forward pass like any other (`engine.run`). Where it can, it reads the newest token alone, on cached keys
and values. How a model's steps are computed is found by trying: the cheapest way that gives what transformers gives for
each text alone, read as a whole, also at lengths beyond the model's windows. Where the model's position encoding
switches, what was cached is of no use, and the text is read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.edits import EditOfRuns
from nnterp_mcp.engine.executors.graphs import (
    WORTHWHILE,
    StaticSteps,
    are_steady,
    captures_steps,
    takes_static_steps,
)
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.forward import NOTHING, Plan, attention_for, run
from nnterp_mcp.engine.kv_cache import cache_inputs, join_caches, takes_rows
from nnterp_mcp.engine.sampling import GREEDY, Sampling, sample_tokens
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import Workload, check_memory, ignore_progress
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.model.structure.context_lengths import Lengths, lengths_of
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt, group_by_length


@dataclass(frozen=True)
class Generation:
    """The text generated after one prompt.

    Attributes:
        prompt: The prompt's index.
        ids: The new tokens, including the one that ended the text.
        log_probs: Their log-probabilities in nats under the model with its interventions, before temperature
            and truncation.
        ended: Stopped at an end-of-text token.
    """

    prompt: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False


@executed_remotely
def generate(
    model: StandardizedTransformer,
    work: Workload,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> list[Generation]:
    """Generates text after each prompt, with interventions.

    Operations on positions of the prompt act while the prompt is read, and through the cache on everything after it;
    those on `all`, on `last` and on ranges without an end act on every new token too; steps are as they say.

    Args:
        model: The model.
        work: The prompts; progress is reported after each step, with the number of steps over all batches.
        max_new_tokens: How many tokens to generate at most.
        sampling: How to choose them.

    Returns:
        One entry for each prompt, in their order.

    Raises:
        InvalidRequest: A vector or a neuron does not fit the states at its place.
        Unsupported: The model does not have one of the places.
    """
    model.require("causal")
    way = find_way(model, max((len(prompt.ids) for prompt in work.prompts), default=0) + max_new_tokens)
    in_parts = not way.cached or _reads_in_parts(model, way, work)
    batches = replace(work, new_tokens=max_new_tokens, padded=way.padded, in_parts=in_parts, progress=ignore_progress)
    total, done = max_new_tokens * len(batches.split(model)), 0

    def say(batch: Batch, numbers: Sequence[int]) -> list[Generation]:
        nonlocal done
        most = work.batch_tokens if in_parts else _EVERYTHING
        loop = _Loop(_Steps(model, batch, work.plan, way, most, max_new_tokens), batch, sampling)
        for _ in range(max_new_tokens):
            check_cancelled()
            loop.step()
            done += 1
            work.progress(done, max(done, total), "steps")
            if loop.ended:
                break
        return loop.generations

    with torch.inference_mode(), attention_for(model, work.plan):
        return batches.run(model, say)


def with_baseline(work: Workload) -> Workload:
    """Every prompt twice, first without the operations and then with them, so that both share batches.

    Args:
        work: The prompts.
    """
    prompts, count = [*work.prompts, *work.prompts], len(work.prompts)
    rows = [replace(prompt, index=row) for row, prompt in enumerate(prompts)]
    unedited = [replace(prompt, index=_UNEDITED) for prompt in prompts[:count]]
    owners = [*unedited, *work.prompts]
    edits = {place: [EditOfRuns(edit, owners) for edit in listed] for place, listed in work.plan.edits.items()}
    return replace(work, prompts=rows, plan=Plan(edits, work.plan.labels))


_UNEDITED = -1
"""The index of a prompt that no operation reaches."""


class _Loop:
    """The text after each prompt of a batch, token by token.

    Attributes:
        generations: The texts so far.
    """

    def __init__(self, steps: _Steps, batch: Batch, sampling: Sampling) -> None:
        self.generations = [Generation(prompt.index) for prompt in batch.prompts]
        self._rows = list(range(len(batch.prompts)))
        self._steps = steps
        self._sampling = sampling
        self._dice = [sampling.dice(prompt.ids) for prompt in batch.prompts]
        self._ends = end_ids(steps.model)

    @property
    def ended(self) -> bool:
        """Every row has stopped."""
        return all(generation.ended for generation in self.generations)

    def step(self) -> None:
        """Computes the next token of every row; those that end leave the batch, where the model's cache allows it."""
        dice = [self._dice[row] for row in self._rows]
        tokens, log_probs = sample_tokens(self._steps.next_logits(), self._sampling, dice)
        for row, token, log_prob in zip(self._rows, tokens.tolist(), log_probs.tolist(), strict=True):
            text = self.generations[row]
            if not text.ended:
                text.ids.append(token)
                text.log_probs.append(log_prob)
                self.generations[row] = replace(text, ended=token in self._ends)
        self._steps.add(tokens)
        staying = [at for at, row in enumerate(self._rows) if not self.generations[row].ended]
        if 0 < len(staying) < len(self._rows) and self._steps.keep(staying):
            self._rows = [self._rows[at] for at in staying]


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


WAYS = tuple(itertools.starmap(Way, itertools.product((True, False), repeat=3)))
"""Ways in the order in which they are tried, the cheapest first; whole texts, each alone, are right for any model."""


_EVERYTHING = 1 << 62
"""More tokens than there are."""


class _Steps:
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
        tokens: int = _EVERYTHING,
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


def end_ids(model: StandardizedTransformer) -> frozenset[int]:
    """The tokens that end a text: those that the model's generation config lists, and the tokenizer's own."""
    config = getattr(model.module, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ids = [*(listed if isinstance(listed, list | tuple) else [listed]), getattr(model.tokenizer, "eos_token_id", None)]
    return frozenset(token for token in ids if isinstance(token, int))


def until_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens up to the first that ends the text, which is among them."""
    return list(tokens[: next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))])


_SHORT, _NEW = 8, 3
"""Tokens of the shortest text that is tried, and how many of them are read one by one."""

_tried: WeakKeyDictionary[nn.Module, dict[tuple[Way, int], bool]] = WeakKeyDictionary()
"""Which ways were right for each model, at which lengths."""

_joined: WeakKeyDictionary[nn.Module, dict[Way, bool]] = WeakKeyDictionary()
"""Whether rows that are read in several passes were right in one cache, by model and way."""


@torch.inference_mode()
def find_way(model: StandardizedTransformer, length: int) -> Way:
    """The cheapest way to compute the steps of a text that is right for short texts and beyond each mark below it.

    Args:
        model: The model.
        length: The tokens that the longest text is to have.
    """
    lengths, known = lengths_of(model.module), _tried.setdefault(model.module, {})
    expected: dict[int, list[Tensor]] = {}
    trials = sorted({_SHORT} | {max(_SHORT, mark.length + _NEW - 1) for mark in lengths.below(length)})

    def is_right(way: Way, at: int) -> bool:
        if (way, at) not in known:
            texts = _texts(model, at, lengths)
            if at not in expected:
                expected[at] = [_alone(model, text) for text in texts]
            known[way, at] = _is_right(model, way, texts, expected[at], _EVERYTHING)
        return known[way, at]

    return next((way for way in WAYS if all(is_right(way, at) for at in trials)), WAYS[-1])


def _reads_in_parts(model: StandardizedTransformer, way: Way, work: Workload) -> bool:
    """True where prompts are read together, or rows read apart are right in one cache; tried once for each way."""
    if not takes_rows(model.module):
        return False
    if sum(len(prompt.ids) for prompt in work.prompts) <= work.batch_tokens:
        return True
    known = _joined.setdefault(model.module, {})
    if way not in known:
        texts = _texts(model, _SHORT, lengths_of(model.module))
        known[way] = _is_right(model, way, texts, [_alone(model, text) for text in texts], tokens=1)
    return known[way]


def _texts(model: StandardizedTransformer, length: int, lengths: Lengths) -> list[list[int]]:
    """A text of so many tokens, and a shorter one that may share a batch with it."""
    ids: list[int] = probe_ids(model.module, length + 1)[0].tolist()
    shares = lengths.share(length - _NEW, length - _NEW - 2, _NEW)
    return [ids[:length], ids[3:]] if shares else [ids[:length]]


def _alone(model: StandardizedTransformer, text: list[int]) -> Float[Tensor, " vocabulary"]:
    """The logits that transformers gives after a text read as a whole."""
    with model.standing_down():
        ids = torch.tensor([text], device=model.device)
        return model.module(input_ids=ids, **cache_inputs(model.module, None)).logits[0, -1].float().cpu()


def _is_right(
    model: StandardizedTransformer, way: Way, texts: list[list[int]], expected: list[Tensor], tokens: int
) -> bool:
    """Checks that the last of some steps gives the logits of each text alone."""
    prompts = [EncodedPrompt(row, "", text[:-_NEW], []) for row, text in enumerate(texts)]
    try:
        for batch in Workload(prompts, batch_tokens=_EVERYTHING, new_tokens=_NEW, padded=way.padded).batches(model):
            steps = _Steps(model, batch, NOTHING, way, tokens)
            logits = steps.next_logits()
            for at in range(_NEW, 0, -1):
                steps.add(torch.tensor([texts[prompt.index][-at] for prompt in batch.prompts]))
                logits = steps.next_logits()
            for prompt, found in zip(batch.prompts, logits.float().cpu(), strict=True):
                alone = expected[prompt.index]
                allowed = TOLERANCES.get(model.module.dtype, 1e-1) * max(float(alone.abs().max()), 1.0)
                if not bool((found - alone).abs().max() <= allowed):
                    return False
    except Exception as error:  # whatever else the modelling code raises, it takes no such cache, or such positions
        if says_nothing(error):
            raise
        return False
    return True
