"""Statistics of attention patterns: entropy, mass on telling tokens, the strongest pairs, reads of chosen queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward, most_returned
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.patterns import summarize_heads, summarize_patterns
from nnterp_mcp.engine.readouts.reductions import join, take_heads
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.operations import IndexSpec
from nnterp_mcp.request.positions import LayerSpec
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers

AttentionTarget = Literal["first", "previous", "itself", "duplicate", "induction"]
"""A token that a head may look for: the first; the previous one; the query itself; earlier tokens equal to the query;
the tokens that followed those."""

ATTENTION_TARGETS: tuple[AttentionTarget, ...] = get_args(AttentionTarget)

OnPattern = Callable[[int, Float[Tensor, "head query key"]], None]
"""Handed a prompt's index and its attention probabilities, the heads in the order in which they were chosen."""

_AT_ONCE = 1 << 22
"""The most attention probabilities reduced at once."""

_TOGETHER = 1 << 21
"""The most attention probabilities of a pass that stay in memory until it ends, to be reduced together."""


class HeadChoice(NamedTuple):
    """Heads of one layer."""

    layer: int
    heads: list[int]


@dataclass(frozen=True, kw_only=True)
class AttentionNumbers:
    """Statistics of the attention of some heads in some prompts. Means are over the chosen queries of a prompt.

    Attributes:
        entropy: Entropy of a query's attention, in nats; an attention sink counts as one more key.
        mass: Attention that each of `ATTENTION_TARGETS` gets, over the queries that have one; NaN where none has.
        sink: Attention that goes to no token.
        pair_probs: The strongest pairs of a query and a key, the first token left out of the keys; zeros fill up
            where there are fewer.
        pair_queries: Positions of their queries.
        pair_keys: Positions of their keys.
        read_first: What each query that is read by itself gives to the first token.
        read_probs: What it gives to the strongest other keys.
        read_keys: Their positions.
    """

    entropy: Float[Tensor, "prompt head"]
    mass: Float[Tensor, "prompt head target"]
    sink: Float[Tensor, "prompt head"]
    pair_probs: Float[Tensor, "prompt head k"]
    pair_queries: Int[Tensor, "prompt head k"]
    pair_keys: Int[Tensor, "prompt head k"]
    read_first: Float[Tensor, "read head"]
    read_probs: Float[Tensor, "read head k"]
    read_keys: Int[Tensor, "read head k"]

    def of(self, target: AttentionTarget) -> Float[Tensor, "prompt head"]:
        """The mass on one target."""
        return self.mass[..., ATTENTION_TARGETS.index(target)]

    def by_prompt(self, reads: Sequence[int]) -> list[AttentionNumbers]:
        """The numbers of each prompt.

        Args:
            reads: How many queries of each are read by themselves.
        """
        ones = [1] * len(reads)
        columns = {
            field.name: getattr(self, field.name).split(list(reads) if field.name.startswith("read") else ones)
            for field in fields(AttentionNumbers)
        }
        return [AttentionNumbers(**{name: rows[row] for name, rows in columns.items()}) for row in range(len(reads))]


@dataclass(frozen=True, kw_only=True)
class AttentionReadings(AttentionNumbers):
    """The same on the CPU, with what its dimensions stand for.

    Attributes:
        prompts: The index of each prompt.
        heads: Layer and number of each head.
        reads: Prompt and position of each query that is read by itself.
    """

    prompts: list[int]
    heads: list[tuple[int, int]]
    reads: list[tuple[int, int]]


def choose_heads(
    model: StandardizedTransformer, layers: LayerSpec = "all", heads: IndexSpec = "all"
) -> list[HeadChoice]:
    """The heads of those of the layers that form attention probabilities.

    Args:
        layers: The layers; those without attention are left out.
        heads: The heads of each of them.

    Raises:
        InvalidRequest: A layer or a head does not exist.
        Unsupported: None of the layers forms attention probabilities.
    """
    asked = resolve_layers(layers, model.num_layers, model.name)
    model.require("attention")
    forming = [layer for layer in asked if model.anatomy.layers[layer].product is not None]
    if not forming:
        require_place(model, Place("attention_probabilities", asked[0]))
    counts = {layer: model.anatomy.layers[layer].num_heads for layer in forming}
    return [
        HeadChoice(layer, resolve_indices(heads, count, "head", f"layer {layer} of {model.name}"))
        for layer, count in counts.items()
    ]


def read_attention(
    model: StandardizedTransformer,
    work: Workload,
    chosen: Sequence[HeadChoice],
    queries: Sequence[Sequence[int]] | None = None,
    *,
    top_k: int = 3,
    on_pattern: OnPattern | None = None,
    offer: Callable[[Callable[[], AttentionReadings]], None] = lambda so_far: None,
) -> AttentionReadings:
    """Summarizes attention patterns on the device; whole patterns leave it only if asked for.

    Attention shows where information could be read from, not how it is used: a head may attend to a token whose value
    it maps to nothing, and most heads rest on the first token when they have nothing to do. So what goes to the
    first token counts as mass on `first` only, never towards another target or a pair.

    Args:
        model: The model; it attends eagerly during the call only.
        work: The prompts; probabilities are read after the operations on them.
        chosen: The heads, as `choose_heads` gives them.
        queries: For each prompt, the positions that read; their reads are returned one by one. By default the
            means over all but the first token, which can only attend to itself.
        top_k: How many pairs of each head and keys of each read to return.
        on_pattern: Handed each prompt's index and whole pattern, on the CPU. By default none is taken off the device. A
            served model hands over a megabyte at most, else nothing.
        offer: Handed, after each batch, what makes the readings of the prompts that are read so far.

    Returns:
        The readings in the order of the prompts.

    Raises:
        Unsupported: A place that the plan needs is missing.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), for the kinds of heads.
    """
    prompts = work.prompts
    asked = [[*range(1, len(prompt.ids))] for prompt in prompts] if queries is None else list(map(sorted, queries))
    one_by_one = [[]] * len(prompts) if queries is None else asked
    probabilities = sum(len(prompt.ids) ** 2 for prompt in prompts) * sum(len(heads) for _, heads in chosen)
    hands_over = on_pattern is not None and probabilities <= most_returned(model)
    found: dict[int, AttentionNumbers] = {}

    def so_far() -> AttentionReadings:
        done = [number for number in range(len(prompts)) if number in found]
        return AttentionReadings(
            **{name: tensor.cpu() for name, tensor in _concatenate([found[number] for number in done]).items()},
            prompts=[prompts[number].index for number in done],
            heads=[(layer, head) for layer, heads in chosen for head in heads],
            reads=[(prompts[number].index, at) for number in done for at in one_by_one[number]],
        )

    def read(batch: Batch, numbers: Sequence[int]) -> tuple[list[AttentionNumbers], list[Tensor]]:
        here = [asked[number] for number in numbers]
        asking = capture_heads(model, batch, here, chosen, top_k, one_by_one=queries is not None)
        whole = [Capture(_place(layer), take_heads, {"heads": heads}) for layer, heads in chosen if hands_over]
        taken = forward(model, batch, work.plan, [*asking.captures, *whole]).values
        parts = asking.join(taken[: len(chosen)]).by_prompt([len(one_by_one[number]) for number in numbers])
        return parts, [pattern.cpu() for pattern in taken[len(chosen) :]]

    for numbers, (parts, patterns) in work.run_batches(model, read, patterns=True):
        if on_pattern is not None and patterns:
            for number, pattern in zip(numbers, torch.cat(patterns, dim=1), strict=True):
                length = len(prompts[number].ids)
                on_pattern(prompts[number].index, pattern[:, -length:, -length:])
        found |= zip(numbers, parts, strict=True)
        offer(so_far)
    return so_far()


def _place(layer: int) -> Place:
    return Place("attention_probabilities", layer)


@dataclass(frozen=True)
class HeadCaptures:
    """Captures of the attention probabilities of some layers in a pass over a batch.

    Attributes:
        captures: A capture of each layer.
        join: Makes the numbers of all heads of what the captures return.
    """

    captures: list[Capture]
    join: Callable[[Sequence[Any]], AttentionNumbers]


def capture_heads(
    model: StandardizedTransformer,
    batch: Batch,
    queries: Sequence[Sequence[int]],
    chosen: Sequence[HeadChoice],
    top_k: int = 1,
    *,
    one_by_one: bool = False,
) -> HeadCaptures:
    """Captures of the chosen heads in a pass over a batch.

    Small patterns are reduced together at the end of the pass, for a step takes no longer over all heads of a short
    prompt than over those of one layer. Large ones are reduced layer by layer.

    Args:
        queries: For each row, the positions that read.
        chosen: The heads.
        top_k: How many pairs and keys to return.
        one_by_one: Return the reads of each query too, not only the means.
    """
    asked = _masks(batch, queries, one_by_one)
    ids = batch.inputs["input_ids"]
    probabilities = sum(len(heads) for _, heads in chosen) * ids.numel() * ids.shape[1]
    small = probabilities <= min(_TOGETHER, most_returned(model))

    def number(found: Sequence[Any]) -> AttentionNumbers:
        if small:
            whole = torch.cat([pattern.to(found[0].device) for pattern in found], dim=1)
            numbers = summarize_patterns([whole], asked, top_k)
        else:
            numbers = join(found, dim=1)
        require_finite(numbers.pop("largest_sink"), "attention probabilities")
        return AttentionNumbers(**numbers)

    options = {"asked": asked, "top_k": top_k, "at_once": _AT_ONCE}
    reduce = take_heads if small else summarize_heads
    return HeadCaptures([Capture(_place(layer), reduce, options | {"heads": heads}) for layer, heads in chosen], number)


def _concatenate(parts: Sequence[AttentionNumbers]) -> dict[str, Tensor]:
    names = [field.name for field in fields(AttentionNumbers)]
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def _masks(batch: Batch, queries: Sequence[Sequence[int]], one_by_one: bool) -> dict[str, Tensor]:
    """The masks that `summarize_patterns` takes: which queries of a padded batch read, and where their targets are."""
    ids = batch.inputs["input_ids"]
    first = torch.tensor(batch.padding, device=ids.device)
    at = torch.arange(ids.shape[1], device=ids.device) - first[:, None]
    places = [(row, batch.padding[row] + position) for row, here in enumerate(queries) for position in here]
    rows, columns = torch.tensor(places, dtype=torch.long, device=ids.device).reshape(-1, 2).T
    query = torch.zeros_like(ids, dtype=torch.bool)
    query[rows, columns] = True
    real = (at >= 0)[:, :, None] & (at >= 0)[:, None, :]
    targets = _find_targets(ids, at) & (real & query[:, :, None])[:, None]
    single = slice(None) if one_by_one else slice(0)
    askers = targets.any(-1).sum(-1)
    masks = {"first": first, "query": query, "real": real, "targets": targets, "askers": askers}
    return masks | {"rows": rows[single], "columns": columns[single]}


def _find_targets(ids: Int[Tensor, "row token"], at: Int[Tensor, "row token"]) -> Bool[Tensor, "row target query key"]:
    """Marks the keys that are targets of each query; `at` is the position of each column, negative in padding."""
    query, key = at[:, :, None], at[:, None, :]
    later = key > 0
    same = ids[:, :, None] == ids[:, None, :]
    followed = ids[:, :, None] == ids.roll(1, dims=1)[:, None, :]
    found: dict[AttentionTarget, Tensor] = {
        "first": (key == 0).expand_as(same),
        "previous": later & (key == query - 1),
        "itself": later & (key == query),
        "duplicate": later & (key < query) & same,
        "induction": later & (key < query) & followed,
    }
    return torch.stack([found[target] for target in ATTENTION_TARGETS], dim=1)
