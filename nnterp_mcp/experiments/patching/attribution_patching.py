"""Attribution patching: what every patch of a grid would do, to first order, from one backward pass.

It asks what activation patching asks, of all cells at once. Where the model bends between the two runs, the straight
line misses: attention that flips, norms, a saturated softmax. So its strongest cells are checked by real patches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place, by_position
from nnterp_mcp.engine.readouts.metrics import make_metric
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.attribution.recorded_pass import RecordedPass, gradients, record
from nnterp_mcp.experiments.patching.activation_patching import Patcher
from nnterp_mcp.experiments.patching.controls import strongest
from nnterp_mcp.model.standardized import StandardizedTransformer

_WORK = Workload(())


@dataclass(frozen=True)
class Estimates:
    """First-order estimates of the effect of patches on the metric; on the CPU.

    Attributes:
        clean: The metric of each clean run.
        corrupted: That of each corrupted run.
        effects: By how much each cell's patch would move the metric of the run that is patched.
    """

    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    effects: Float[Tensor, "pair cell"]


@dataclass(frozen=True)
class Comparison:
    """Estimates beside real patches.

    Attributes:
        cells: Which cells of the grid were patched: the strongest by their estimate, then others drawn at random.
        strongest: How many of them are the strongest.
        effects: What the patches did to the metric of each run.
        by_construction: For which cells that follows from what is replaced, as it does for `Patching`.
        pearson: The correlation of estimates and effects over these cells, in the mean over pairs; None where one of
            the two does not vary.
        agreement: The share of the strongest cells whose effect has the sign that was estimated.
    """

    cells: list[int]
    strongest: int
    effects: Float[Tensor, "pair checked"]
    by_construction: Bool[Tensor, " checked"]
    pearson: float | None
    agreement: float


def estimate_effects(patcher: Patcher, work: Workload = _WORK) -> Estimates:
    """Estimates every cell of a patcher's grid: (the other run's state − the run's own) · the metric's slope there.

    Two forward passes and one backward pass for each pair, whatever the grid's size.

    Args:
        patcher: The question: pairs, grid, direction, metric and targets.
        work: Where progress is reported, in pairs.

    Raises:
        InvalidRequest: The metric needs other targets, or has no slope at the run that is patched.
        Unsupported: The patcher ablates, follows paths, patches windows, or acts on inputs with interventions.

    Source: Nanda, "Attribution Patching" (2023); Syed et al., "Attribution Patching Outperforms Automated Circuit
    Discovery" (2023).
    """
    require_slopes(patcher)
    clean: list[float] = []
    corrupted: list[float] = []
    effects: list[Tensor] = []
    for index in range(len(patcher.pairs)):
        good, bad, found = _estimate_pair(patcher, index)
        clean.append(good)
        corrupted.append(bad)
        effects.append(found)
        work.progress(index + 1, None, "pairs estimated")
    return Estimates(torch.tensor(clean), torch.tensor(corrupted), torch.stack(effects))


def require_slopes(patcher: Patcher) -> None:
    """Refuses a question that slopes do not answer.

    Raises:
        InvalidRequest: The metric has no slope at the run that is patched.
        Unsupported: The patcher ablates, follows paths, patches windows, or acts on inputs with interventions.
    """
    if patcher.ablation is not None or patcher.receivers is not None or patcher.grid.windows or _edited(patcher):
        raise Unsupported(
            "attribution patching takes pairs of unedited runs, one layer at a time, and all paths: for others, patch "
            "activations."
        )
    if patcher.metric == "kl" and patcher.direction == "noising":
        raise InvalidRequest(
            "the divergence from the clean run has no slope at the clean run.",
            "Take the direction denoising, or the metric logit_difference or log_probability.",
        )


def _edited(patcher: Patcher) -> bool:
    return any(given is not None and given.plan for pair in patcher.pairs for given in (pair.clean, pair.corrupted))


def compare_with_patches(
    patcher: Patcher,
    estimates: Estimates,
    work: Workload = _WORK,
    count: int = 10,
    *,
    seed: int = 0,
) -> Comparison | None:
    """Patches the cells that were estimated to be strongest, and as many others, which show what was overlooked.

    Args:
        patcher: The question.
        work: The size of batches, and where progress is reported, in runs.
        count: The number of strongest cells.
        seed: The seed with which the others are drawn.

    Returns:
        The comparison; None where no cell has an effect.
    """
    cells = patcher.grid.cells
    mean = estimates.effects.mean(0)
    first = [cells.index(cell) for cell in strongest(cells, mean.tolist(), count)]
    if not first:
        return None
    left = sorted(set(mean.nonzero()[:, 0].tolist()) - set(first))
    chosen = first + random.Random(seed).sample(left, min(count, len(left)))
    patched = patcher.patch([[cells[at]] for at in chosen], work)
    own = estimates.clean if patcher.direction == "noising" else estimates.corrupted
    effects = patched.values - own[:, None]
    pearson, agreement = correlate(mean[chosen], effects.mean(0), len(first))
    return Comparison(chosen, len(first), effects, patched.by_construction, pearson, agreement)


def correlate(
    estimated: Float[Tensor, " checked"], real: Float[Tensor, " checked"], strongest: int
) -> tuple[float | None, float]:
    """The correlation of estimates and effects, and the share of the first ones whose sign was estimated.

    Args:
        estimated: The estimates.
        real: The effects.
        strongest: How many of them are the strongest, which come first.

    Returns:
        Both; no correlation where one of the two does not vary.
    """
    both = torch.stack([real.double(), estimated.double()])
    varies = both.shape[1] > 1 and bool((both.std(1) > 0).all())
    agreement = float((real.sign() == estimated.sign())[:strongest].double().mean())
    return float(torch.corrcoef(both)[0, 1]) if varies else None, agreement


def _estimate_pair(patcher: Patcher, index: int) -> tuple[float, float, Float[Tensor, " cell"]]:
    """The metric of both runs, and the estimate of each cell."""
    model, grid, pair = patcher.model, patcher.grid, patcher.pairs[index]
    assert pair.corrupted is not None
    noising = patcher.direction == "noising"
    own, other = (pair.clean, pair.corrupted) if noising else (pair.corrupted, pair.clean)
    places = list(dict.fromkeys(cell.place for cell in grid.cells))
    with gradients(model.module):
        # Both alike, so that what is equal in both runs differs by nothing at all.
        seen = detached(record_run(model, other, places))
        watched = record_run(model, own, places)
        clean, corrupted = (watched, seen) if noising else (seen, watched)
        targets = patcher.targets[pair.index] if patcher.targets else ()
        measure = make_metric(patcher.metric, targets, clean.logits[0].detach())
        good, bad = measure(clean.logits), measure(corrupted.logits)
        # Not nnsight's `.grad`: it has to be asked for in the order of the backward pass, which parallel attention and
        # MLP, and queries, keys and values, leave open.
        slopes = torch.autograd.grad(
            good if noising else bad, list(watched.states.values()), allow_unused=True, materialize_grads=True
        )
    slope_of = dict(zip(watched.states, slopes, strict=True))
    spans = _corresponding(patcher, index)
    tables = {
        place: _Table(
            *(by_position(of[place], place.site)[0].detach() for of in (seen.states, watched.states, slope_of))
        )
        for place in places
    }
    if grid.by_unit:
        by_unit = {place: table.by_unit(*spans[0]).tolist() for place, table in tables.items()}
        estimates = [by_unit[cell.place][cell.column] for cell in grid.cells]
    else:
        estimates = [float(tables[cell.place].estimate(*spans[cell.column])) for cell in grid.cells]
    return float(good.detach()), float(bad.detach()), torch.tensor(estimates)


@dataclass(frozen=True)
class _Table:
    """One place: what the other run has there, what the patched run has, and the metric's slope along the latter."""

    other: Float[Tensor, "position *head width"]
    own: Float[Tensor, "position *head width"]
    slope: Float[Tensor, "position *head width"]

    def estimate(self, into: Sequence[int], from_: Sequence[int]) -> Float[Tensor, ""]:
        """The estimated effect of the other run's states at some positions."""
        return ((self.other[from_].double() - self.own[into].double()) * self.slope[into].double()).sum()

    def by_unit(self, into: Sequence[int], from_: Sequence[int]) -> Float[Tensor, " unit"]:
        """That of each head, or of each neuron, at these positions."""
        change = (self.other[from_].double() - self.own[into].double()) * self.slope[into].double()
        return change.flatten(2).sum((0, 2)) if change.ndim > 2 else change.sum(0)


def _corresponding(patcher: Patcher, index: int) -> list[tuple[list[int], list[int]]]:
    """For each span, the positions that are patched and those that states come from; one for all where by head."""
    spans = [sorted(span) for span in patcher.corresponding(index)]
    if patcher.grid.by_unit:
        spans = [sorted({at for span in spans for at in span})]
    return [([at for at, _ in span], [at for _, at in span]) for span in spans]


def record_run(model: StandardizedTransformer, given: Input, places: Sequence[Place]) -> RecordedPass:
    """One run of an input.

    Raises:
        OutOfMemory: It does not fit with what autograd keeps.
    """
    (found,) = Workload([given.prompt]).run(
        model, lambda batch, numbers: [record(model, batch, Plan(given.edits), places)]
    )
    return found


def detached(found: RecordedPass) -> RecordedPass:
    """Without the graph, whose activations take memory."""
    return RecordedPass(found.logits.detach(), {place: states.detach() for place, states in found.states.items()})
