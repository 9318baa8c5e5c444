"""Sets of cells patched together: a circuit's faithfulness, completeness and minimality, compared with random sets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.patching.activation_patching import Cell, Patcher, Patching
from nnterp_mcp.experiments.patching.controls import draw_matched
from nnterp_mcp.experiments.statistics.bootstrap import Estimate, average_draws, estimate_recovery


@dataclass(frozen=True)
class SetRuns:
    """A set of cells patched together, and random sets of as many cells of the same sites and layers.

    Attributes:
        draws: The random sets; none where the grid has too few other cells for `DRAWS` different ones.
        patched: The runs of the set, then of each random set.
    """

    draws: list[list[Cell]]
    patched: Patching


@dataclass(frozen=True)
class Circuit:
    """The share of the metric that parts of a grid carry alone, from 0 (no cell intact) to 1 (all cells intact).

    Attributes:
        faithfulness: The share with the set alone intact. A faithful circuit has 1.
        completeness: The share with all but the set intact. A complete circuit leaves 0.
        losses: By how much faithfulness falls when one cell leaves the set, by cell. A minimal circuit has no 0.
        random_faithfulness: The faithfulness of random sets.
        random_completeness: Their completeness.
        intact: The metric with every cell intact.
        none: The metric with none intact.
    """

    faithfulness: Estimate
    completeness: Estimate
    losses: list[Estimate]
    random_faithfulness: list[float]
    random_completeness: list[float]
    intact: Float[Tensor, " pair"]
    none: Float[Tensor, " pair"]


def patch_set(patcher: Patcher, chosen: Sequence[Cell], others: Sequence[Cell], work: Workload) -> SetRuns:
    """Patches a set of cells together, and random sets matched in size, sites and layers.

    Args:
        patcher: The question.
        chosen: The set.
        others: The cells that random sets are drawn from.
        work: The size of batches, and where progress is reported.
    """
    draws = draw_matched(others, chosen)
    return SetRuns(draws, patcher.patch([chosen, *draws], work))


def measure_circuit(
    patcher: Patcher, chosen: Sequence[Cell], draws: Sequence[Sequence[Cell]], work: Workload
) -> Circuit | None:
    """Measures a set of cells as a circuit within its grid.

    A cell is intact where it has the state of the clean run. Noising and ablation replace all others in clean runs;
    denoising puts the clean states of intact cells into corrupted runs.

    Args:
        patcher: The question; its grid is the whole of which the circuit is a part.
        chosen: The circuit.
        draws: Random sets to compare it with.
        work: The size of batches, and where progress is reported.

    Returns:
        The measures, with 95 % intervals over prompts; None where the metric is the same with all cells intact and with
        none.

    Source: Wang et al., "Interpretability in the Wild" (2022), for the three criteria; Marks et al., "Sparse Feature
    Circuits" (2024), for faithfulness as a share, and completeness as that of the complement.
    """
    everything = set(patcher.grid.cells)
    kept = [everything, set[Cell](), set(chosen), everything - set(chosen)]
    kept += [set(chosen) - {cell} for cell in chosen]
    kept += [set(drawn) for drawn in draws] + [everything - set(drawn) for drawn in draws]
    found = patcher.patch([_replaced(patcher, cells) for cells in kept], work)
    values = average_draws(found.values, [pair.index for pair in patcher.pairs])
    members = slice(4, 4 + len(chosen))
    shares = estimate_recovery(values, values[:, 0], values[:, 1])
    if shares is None:
        return None
    losses = estimate_recovery(values[:, [2]] - values[:, members] + values[:, [1]], values[:, 0], values[:, 1])
    means = [share.mean for share in shares[members.stop :]]
    return Circuit(
        faithfulness=shares[2],
        completeness=shares[3],
        losses=losses or [],
        random_faithfulness=means[: len(draws)],
        random_completeness=means[len(draws) :],
        intact=found.values[:, 0],
        none=found.values[:, 1],
    )


def _replaced(patcher: Patcher, intact: Collection[Cell]) -> list[Cell]:
    """The cells to patch so that some cells of the grid are intact and no other is."""
    noising = patcher.direction == "noising" or patcher.ablation is not None
    return [cell for cell in patcher.grid.cells if (cell in intact) != noising]
