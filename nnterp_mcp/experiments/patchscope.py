"""Patchscopes: a hidden state of one prompt put into another, and what the model then says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from nnterp_mcp.engine.branches import BranchBatch
from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.readouts.next_token import Categories, Readout, ReadoutRows
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import compare_rows
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.patched_target import LayerPair, SourceReadings, Target, run_patches
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.selectors import resolve_layers


@dataclass(frozen=True)
class PatchscopeReadings:
    """The target prompt's next-token distribution under each patch, on the CPU.

    Attributes:
        pairs: Source layer and target layer of each patch.
        patched: The distributions after the target prompt, by source and pair.
        continuations: Generated tokens, by source and pair; each row in the order of generation.
        unpatched: The distribution without a patch, with each source's categories.
        unpatched_continuation: What is generated without a patch.
    """

    pairs: list[LayerPair]
    patched: Readout
    continuations: list[list[list[int]]]
    unpatched: Readout
    unpatched_continuation: list[int]


def read_patchscope(
    model: StandardizedTransformer,
    sources: SourceReadings,
    target: Target,
    pairs: Sequence[LayerPair],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    max_new_tokens: int = 0,
) -> PatchscopeReadings:
    """Puts each source's state of each pair's layer into the target prompt, and reads what the model says after it.

    Measures what the model can make of a state in the target's context. It misleads where the state is put into a
    layer far from its own (another basis), where the target prompt itself prefers an answer (compare with
    `unpatched`), and where a model fails at the target prompt's task: silence is no proof that the information is
    absent.

    Everything is reduced beside the model: only the numbers in the readings leave the device.

    Args:
        sources: The states.
        target: The target prompt and the position at which states are put.
        pairs: Source layer and target layer of each patch, the same for all sources.
        top_k: Number of top tokens to return.
        categories: For each source, the token ids of each category to follow.
        max_new_tokens: How many tokens to generate greedily; none by default. The patch acts on the prompt only.

    Returns:
        The readings in the order of the sources, then of the pairs.

    Source: Ghandeharioun et al., "Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language
    Models" (2024).
    """
    states, total = sources.states, len(sources.states) * len(pairs)
    if states.shape[-1] != model.hidden_size:
        raise InvalidRequest(f"states of width {states.shape[-1]} do not fit: {model.name} has {model.hidden_size}.")
    followed = Categories.of(categories or [[]] * len(states), torch.device("cpu"))
    every = torch.arange(len(states))

    def read(order: Sequence[int]) -> LogitReduction:
        """The unpatched distribution once for each source, whose categories differ, and that of each row."""
        chosen = followed[torch.cat([every, torch.tensor(order) // len(pairs)])]
        rows = torch.cat([torch.zeros_like(every), torch.arange(1, 1 + len(order))])
        options = {"rows": rows, "ids": chosen.ids, "real": chosen.real, "top_k": top_k, "baselines": None}
        return LogitReduction(compare_rows, options)

    readout, unpatched = ReadoutRows(total), ReadoutRows(len(states))
    said: dict[int, list[int]] = {}
    batch: BranchBatch | None = None
    for batch in run_patches(model, target, sources, pairs, reduction=read, max_new_tokens=max_new_tokens):
        require_finite(batch.numbers.pop("total"), "logits")
        device = batch.numbers["entropy"].device
        for to, rows, part in (
            (unpatched, every, slice(len(states))),
            (readout, torch.tensor(batch.rows), slice(len(states), None)),
        ):
            to.put(rows.to(device), Readout(**{name: values[part] for name, values in batch.numbers.items()}))
        said |= zip(batch.rows, batch.continuations, strict=True)
        target.work.progress(len(said), total, "patches")
    assert batch is not None
    return PatchscopeReadings(
        pairs=list(pairs),
        patched=readout.read((len(states), len(pairs))),
        continuations=[
            [said[row] for row in range(start, start + len(pairs))] for start in range(0, len(said), len(pairs))
        ],
        unpatched=unpatched.read((len(states),)),
        unpatched_continuation=batch.base_continuation,
    )


def pair_layers(
    source_layers: str | int | Sequence[int], target_layers: str | int | Sequence[int], num_layers: int, name: str
) -> list[LayerPair]:
    """Which source layer goes into which target layer.

    Args:
        source_layers: A layer, a list, a range or `all`.
        target_layers: `same` puts each state back where it was; a layer takes all of them; a list takes one after
            the other, in the order given; a range or `all` takes every one of them in each of its layers, a grid.
        num_layers: How many layers the model has.
        name: The model's name, for errors.

    Raises:
        InvalidRequest: A layer does not exist, or the lists differ in length.
    """
    sources = layers_in_order(source_layers, num_layers, name)
    if target_layers == "same":
        return [(layer, layer) for layer in sources]
    targets = layers_in_order(target_layers, num_layers, name)
    if isinstance(target_layers, str) or len(targets) == 1:
        return list(product(sources, targets))
    if len(targets) != len(sources):
        raise InvalidRequest(
            f"{len(targets)} target_layers cannot take the states of {len(sources)} source_layers one by one.",
            "Give lists of equal length, one target layer, 'same', or 'all' or a range for a grid.",
        )
    return list(zip(sources, targets, strict=True))


def layers_in_order(layers: str | int | Sequence[int], num_layers: int, name: str) -> list[int]:
    """Layers in the order given."""
    if isinstance(layers, str | int):
        return resolve_layers(layers, num_layers, name)
    return [index for layer in layers for index in resolve_layers(layer, num_layers, name)]
