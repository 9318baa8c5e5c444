"""Faithfulness of circuits by their number of edges, next to random circuits of the same size."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.workload import ReportProgress, ignore_progress
from nnterp_mcp.experiments.circuits.edge_patching import EdgePatcher
from nnterp_mcp.experiments.circuits.selection import Edge, as_mask, draw_circuit
from nnterp_mcp.experiments.statistics.bootstrap import Estimate, estimate_recovery

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of a graph's edges at which circuits are measured, as in the MIB benchmark."""


@dataclass(frozen=True)
class CircuitRuns:
    """Circuits of one size, measured.

    Attributes:
        edges: The circuit's edges, in the order in which they were taken in.
        values: The metric with the circuit alone intact, by pair.
        random_values: The same for random circuits of as many edges.
    """

    edges: list[Edge]
    values: Float[Tensor, " pair"]
    random_values: Float[Tensor, "pair draw"]


@dataclass(frozen=True)
class Faithfulness:
    """The place of a circuit's metric between that of the corrupted runs (0) and that of the clean runs (1).

    Attributes:
        circuit: The circuit's.
        randoms: That of each random circuit, in the mean over pairs.
    """

    circuit: Estimate
    randoms: list[float]


@dataclass(frozen=True)
class CurveAreas:
    """Areas of a faithfulness curve over the share of edges, from 0 to 1.

    Attributes:
        under: The area under the curve (MIB's CPR): large where few edges carry much.
        from_one: The area between the curve and 1 (MIB's CMD): 0 where circuits do what the model does.
    """

    under: float
    from_one: float


def sizes_of(edges: int, shares: Sequence[float] = SHARES) -> list[int]:
    """The sizes at which circuits of a graph are measured, in edges, each once."""
    return list(dict.fromkeys(max(1, round(edges * share)) for share in shares))


def measure_circuit(
    patchers: Sequence[EdgePatcher],
    circuit: Sequence[Edge],
    draws: int,
    *,
    seed: int = 0,
    progress: ReportProgress = ignore_progress,
) -> CircuitRuns:
    """Runs a circuit, and random ones of as many edges, with every other edge patched.

    Args:
        patchers: The pairs.
        circuit: Its edges.
        draws: Random circuits; none where the circuit is empty or the whole graph.
        seed: The seed of the draws, the same circuits for every pair.
        progress: Where progress is reported, in runs.

    Source: Mueller et al., "MIB: A Mechanistic Interpretability Benchmark" (2025).
    """
    graph = patchers[0].graph
    count = len(circuit)
    alike = draws if 0 < count < int(graph.exists.sum()) else 0
    every = [circuit, *(draw_circuit(graph, count, random.Random(f"{seed} {count} {at}")) for at in range(alike))]
    masks = torch.stack([as_mask(graph, edges) for edges in every])
    values: list[Tensor] = []
    for at, patcher in enumerate(patchers, start=1):
        values.append(patcher.run(masks))
        progress(at * len(every), len(patchers) * len(every), "runs")
    table = torch.stack(values)
    return CircuitRuns(list(circuit), table[:, 0], table[:, 1:])


def estimate_faithfulness(patchers: Sequence[EdgePatcher], runs: CircuitRuns) -> Faithfulness | None:
    """The faithfulness of one circuit and of random ones; None where clean and corrupted runs do not differ."""
    clean = torch.tensor([patcher.clean_value for patcher in patchers])
    corrupted = torch.tensor([patcher.corrupted_value for patcher in patchers])
    shares = estimate_recovery(torch.cat([runs.values[:, None], runs.random_values], 1), clean, corrupted)
    if shares is None:
        return None
    return Faithfulness(shares[0], [share.mean for share in shares[1:]])


def areas(shares: Sequence[float], faithfulness: Sequence[float]) -> CurveAreas:
    """The areas of a curve by the trapezoidal rule, from the smallest share measured to the largest.

    Args:
        shares: The shares of the graph's edges, ascending.
        faithfulness: The faithfulness at each.

    Source: Mueller et al., "MIB: A Mechanistic Interpretability Benchmark" (2025).
    """
    x, y = torch.tensor(shares, dtype=torch.float64), torch.tensor(faithfulness, dtype=torch.float64)
    return CurveAreas(float(torch.trapezoid(y, x)), float(torch.trapezoid((1 - y).abs(), x)))
