"""The stages of `find_circuit`, each kept once it is finished: pairs are scored, sizes measured, edges patched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.workload import ReportProgress
from nnterp_mcp.experiments.circuits.edge_graph import EdgeGraph
from nnterp_mcp.experiments.circuits.edge_patching import EdgePatcher
from nnterp_mcp.experiments.circuits.edge_scores import midpoints, score_edges
from nnterp_mcp.experiments.circuits.faithfulness import (
    CircuitRuns,
    estimate_faithfulness,
    measure_circuit,
    sizes_of,
)
from nnterp_mcp.experiments.circuits.selection import Edge, prune_edges, rank_edges
from nnterp_mcp.toolset.find_circuit.params import FindCircuitParams
from nnterp_mcp.toolset.find_circuit.result import ENOUGH

_HELD_OUT = 4
"""Prompts from which on every second one is measured, and not scored."""

PATCHED = 20
"""Edges that are patched one by one."""


@dataclass(frozen=True)
class Stage:
    """What one stage computes; the rest is empty.

    Attributes:
        scores: The scores of a pair's edges, those that exist, as float32 in base64.
        values: The metric under a circuit of one size, by measured pair; empty for a circuit of no edges, or of the
            same ones as that of the size before it.
        random_values: The same under random circuits, by draw.
        chosen_by: That under the circuit, by scored pair, where these choose the size and others measure it.
        effects: Those of the strongest edges, in the mean over pairs.
    """

    scores: str = ""
    values: list[float] = field(default_factory=list[float])
    random_values: list[list[float]] = field(default_factory=list[list[float]])
    chosen_by: list[float] = field(default_factory=list[float])
    effects: list[float] = field(default_factory=list[float])


class Stages:
    """Finds a circuit stage by stage, each of which builds on those before it.

    Args:
        params: The call's arguments.
        graph: The graph.
        patchers: The pairs.

    Attributes:
        scored: The pairs on which edges are scored.
        measured: The pairs on which circuits are measured.
        sizes: The numbers of edges taken in.
        found: The finished stages, by number: the pairs that are scored, then the sizes, then the single edges.
    """

    def __init__(self, params: FindCircuitParams, graph: EdgeGraph, patchers: Sequence[EdgePatcher]) -> None:
        self._params = params
        self._graph = graph
        self._patchers = patchers
        self._apart = len(patchers) >= _HELD_OUT
        self.scored = list(range(0, len(patchers), 2 if self._apart else 1))
        self.measured = list(range(1, len(patchers), 2)) if self._apart else self.scored
        total = int(graph.exists.sum())
        asked = () if params.edges is None else (min(params.edges, total),)
        self.sizes = sorted({*sizes_of(total), *asked})
        self.found: dict[int, Stage] = {}

    @property
    def groups(self) -> list[list[int]]:
        """The stages, each computed by itself."""
        return [[at] for at in range(len(self.scored) + len(self.sizes) + 1)]

    def compute(self, number: int, progress: ReportProgress) -> Stage:
        """Computes the next stage."""
        size = number - len(self.scored)
        if size < 0:
            scores = score_edges(self._patchers[self.scored[number]], midpoints(self._params.steps))
            return Stage(scores=_packed(scores[self._graph.exists]))
        return self._measure(size, progress) if size < len(self.sizes) else self._patch()

    @property
    def pairs_done(self) -> int:
        """How many pairs are scored."""
        return min(len(self.found), len(self.scored))

    @property
    def sizes_left(self) -> int:
        """The sizes that are not measured yet."""
        return max(0, min(len(self.sizes), len(self.scored) + len(self.sizes) - len(self.found)))

    def scores(self) -> Float[Tensor, "sender receiver"]:
        """The mean score of each edge over the pairs that are scored so far."""
        each = [_unpacked(self.found[at].scores) for at in range(self.pairs_done)]
        scores = torch.zeros(self._graph.exists.shape, dtype=torch.float64)
        scores[self._graph.exists] = torch.stack(each).double().mean(0)
        return scores

    @property
    def effects(self) -> list[float]:
        """Those of the edges that were patched one by one."""
        last = self.found.get(len(self.scored) + len(self.sizes))
        return [] if last is None else last.effects

    @cached_property
    def circuits(self) -> list[list[Edge]]:
        """The circuit of each size, once every pair is scored."""
        order = rank_edges(self._graph, self.scores())
        return [prune_edges(self._graph, order[:size]) for size in self.sizes]

    def strongest(self, edges: Sequence[Edge]) -> list[Edge]:
        """Edges by the sizes of their scores, the largest first."""
        sizes = self.scores().abs().tolist()
        return sorted(edges, key=lambda edge: -sizes[edge[0]][edge[1]])

    def patchers(self, pairs: Sequence[int]) -> list[EdgePatcher]:
        """Those of some pairs."""
        return [self._patchers[at] for at in pairs]

    def _measure(self, size: int, progress: ReportProgress) -> Stage:
        circuit = self.circuits[size]
        if not circuit or (size and circuit == self.circuits[size - 1]):
            return Stage()
        runs = measure_circuit(self.patchers(self.measured), circuit, self._params.draws, progress=progress)
        chosen_by: list[float] = []
        if self._apart and self._params.edges is None:
            chosen_by = measure_circuit(self.patchers(self.scored), circuit, 0).values.tolist()
        return Stage(values=runs.values.tolist(), random_values=runs.random_values.T.tolist(), chosen_by=chosen_by)

    def _patch(self) -> Stage:
        chosen = self.chosen()
        if chosen is None:
            return Stage()
        edges = self.strongest(self.curve()[chosen].edges)[:PATCHED]
        effects = [patcher.patch_edges(edges) for patcher in self.patchers(self.measured)]
        return Stage(effects=torch.stack(effects).mean(0).tolist())

    def _of_sizes(self) -> list[tuple[list[Edge], Stage]]:
        """The circuits that are measured so far, each once."""
        done = range(len(self.sizes) - self.sizes_left)
        stages = [(at, self.found[len(self.scored) + at]) for at in done]
        return [(self.circuits[at], stage) for at, stage in stages if stage.values]

    def curve(self) -> list[CircuitRuns]:
        """The circuits that are measured so far, on the pairs that measure."""
        return [
            CircuitRuns(circuit, torch.tensor(stage.values), _by_pair(stage)) for circuit, stage in self._of_sizes()
        ]

    def chosen(self) -> int | None:
        """The place in the curve of the circuit: of the size asked for, else the smallest that is faithful enough.

        The size is chosen on the pairs that chose the edges: the others have chosen neither.
        """
        curve = self.curve()
        if not curve or estimate_faithfulness(self.patchers(self.measured), curve[0]) is None:
            return None
        asked = self._params.edges
        if asked is not None:
            return max((at for at, runs in enumerate(curve) if len(runs.edges) <= asked), default=0)
        pairs = self.patchers(self.scored if self._apart else self.measured)
        for at, (_, stage) in enumerate(self._of_sizes()):
            values = torch.tensor(stage.chosen_by if self._apart else stage.values)
            found = estimate_faithfulness(pairs, CircuitRuns([], values, values[:, None][:, :0]))
            if found is None:
                return None
            if found.circuit.mean >= ENOUGH:
                return at
        return len(curve) - 1


def _by_pair(stage: Stage) -> Float[Tensor, "pair draw"]:
    return torch.tensor(stage.random_values).reshape(-1, len(stage.values)).T


def _packed(scores: Tensor) -> str:
    return base64.b64encode(scores.float().numpy().tobytes()).decode()


def _unpacked(scores: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(scores)), dtype=torch.float32)
