"""`find_circuit` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnterp_mcp.contract import Measured
from nnterp_mcp.engine.planning.clean_states import Known
from nnterp_mcp.engine.readouts.metrics import default_metric
from nnterp_mcp.engine.readouts.targets import follow_target_sets
from nnterp_mcp.experiments.circuits.edge_graph import EdgeGraph, make_edge_graph
from nnterp_mcp.experiments.circuits.edge_patching import EdgePatcher, make_edge_patcher
from nnterp_mcp.experiments.circuits.edge_scores import midpoints, score_edges
from nnterp_mcp.experiments.circuits.faithfulness import (
    CircuitRuns,
    areas,
    estimate_faithfulness,
    measure_sizes,
    sizes_of,
)
from nnterp_mcp.experiments.circuits.selection import Edge, rank_edges
from nnterp_mcp.experiments.patching.corruption import put_in_force
from nnterp_mcp.experiments.statistics.bootstrap import estimate_mean
from nnterp_mcp.toolset.find_circuit.params import FindCircuitParams
from nnterp_mcp.toolset.find_circuit.result import (
    ENOUGH,
    CircuitEdge,
    CircuitPart,
    CircuitSize,
    FindCircuitResult,
)
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.pairs import make_pairs

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_HELD_OUT = 4
"""Prompts from which on every second one is measured, and not scored."""

_PATCHED = 20
"""Edges that are patched one by one."""


def run(bench: Bench, params: FindCircuitParams, job: Job) -> FindCircuitResult:
    """Scores the edges on some prompts, and measures circuits on the others."""
    prompts = bench.encode(params.clean)
    pairs, how = make_pairs(bench, params.clean, params.corrupted, prompts)
    if params.interventions:
        known: Known = {}
        pairs = put_in_force(pairs, lambda prompts: bench.plan(params.interventions, prompts, known))
    targets = follow_target_sets(params.targets, len(prompts), bench.model)
    metric = default_metric(len(targets[0].ids))
    graph = make_edge_graph(bench.model)
    patchers: list[EdgePatcher] = []
    for pair in pairs:
        patchers.append(make_edge_patcher(graph, pair, metric, list(targets[pair.index].ids.values())))
        job.progress(len(patchers), len(pairs), "pairs read")
    apart = len(pairs) >= _HELD_OUT
    scored = list(range(0, len(pairs), 2 if apart else 1))
    measured = list(range(1, len(pairs), 2)) if apart else scored
    scores = torch.zeros(graph.exists.shape, dtype=torch.float64)
    for done, at in enumerate(scored, start=1):
        scores += score_edges(patchers[at], midpoints(params.steps)) / len(scored)
        job.progress(done, len(scored), "pairs scored")
    job.keep("scores", scores.float(), {"sender": _names(graph.senders), "receiver": _names(graph.receivers)})
    found = _Circuits(graph, scores, [patchers[at] for at in measured])
    curve, runs = found.curve(params, job)
    # The size is chosen on the prompts that chose the edges: the others have chosen neither.
    judged = curve
    if apart and curve and params.edges is None:
        without_draws = params.model_copy(update={"draws": 0})
        judged, _ = _Circuits(graph, scores, [patchers[at] for at in scored]).curve(without_draws, job)
    chosen = _choose(judged, params.edges) if curve else None
    edges = [] if chosen is None else found.edges(runs[chosen].edges)
    effects = [edge.effect for edge in edges if edge.effect is not None]
    both = torch.tensor([[edge.score for edge in edges[: len(effects)]], effects], dtype=torch.float64)
    texts = [pairs[0].clean.prompt.text, *([pairs[0].corrupted.prompt.text] if pairs[0].corrupted else [])]
    area = areas([size.share for size in curve], [size.faithfulness.mean for size in curve]) if len(curve) > 1 else None
    return FindCircuitResult(
        model=bench.handle,
        metric=metric,
        corruption=how,
        in_force=list(pairs[0].clean.plan.labels),
        texts=texts,
        scored=[pairs[at].index for at in scored],
        measured=[pairs[at].index for at in measured],
        steps=params.steps,
        total=int(graph.exists.sum()),
        clean=found.mean([patcher.clean_value for patcher in found.patchers]),
        corrupted=found.mean([patcher.corrupted_value for patcher in found.patchers]),
        categories=targets[0].words,
        shared=targets[0].shared,
        curve=curve,
        under=None if area is None else area.under,
        from_one=None if area is None else area.from_one,
        circuit=chosen,
        edges=edges,
        parts=[] if chosen is None else found.parts(runs[chosen].edges),
        agreement=float((both[0].sign() == both[1].sign()).double().mean()) if effects else 0.0,
        pearson=_pearson(both),
    )


def _choose(curve: Sequence[CircuitSize], asked: int | None) -> int | None:
    """The circuit's place in the curve: of the size that was asked for, else the smallest that is faithful enough."""
    if not curve:
        return None
    if asked is not None:
        return max((at for at, size in enumerate(curve) if size.edges <= asked), default=0)
    return next((at for at, size in enumerate(curve) if size.faithfulness.mean >= ENOUGH), len(curve) - 1)


def _pearson(both: Tensor) -> float | None:
    if both.shape[1] < 3 or not bool((both.std(1) > 0).all()):
        return None
    return float(torch.corrcoef(both)[0, 1])


def _names(nodes: Sequence[Any]) -> list[int | str]:
    return [str(node) for node in nodes]


class _Circuits:
    """Circuits by the scores of their edges, on the pairs on which they are measured."""

    def __init__(self, graph: EdgeGraph, scores: Tensor, patchers: Sequence[EdgePatcher]) -> None:
        self._graph = graph
        self._scores = scores
        self.patchers = patchers

    def mean(self, values: Sequence[float]) -> Measured:
        """The mean over pairs."""
        (found,) = estimate_mean(torch.tensor(values)[:, None])
        return Measured(mean=found.mean, low=found.low, high=found.high)

    def curve(self, params: FindCircuitParams, job: Job) -> tuple[list[CircuitSize], list[CircuitRuns]]:
        """Faithfulness by size; nothing where clean and corrupted runs do not differ."""
        order = rank_edges(self._graph, self._scores)
        sizes = sizes_of(len(order))
        if params.edges is not None:
            sizes = sorted({*sizes, min(params.edges, len(order))})
        runs = measure_sizes(self.patchers, order, sizes, params.draws, progress=job.progress)
        runs = [one for at, one in enumerate(runs) if one.edges and (at == 0 or one.edges != runs[at - 1].edges)]
        curve: list[CircuitSize] = []
        for one in runs:
            found = estimate_faithfulness(self.patchers, one)
            if found is None:
                return [], []
            curve.append(
                CircuitSize(
                    edges=len(one.edges),
                    share=len(one.edges) / len(order),
                    faithfulness=Measured(mean=found.circuit.mean, low=found.circuit.low, high=found.circuit.high),
                    randoms=found.randoms,
                )
            )
        return curve, runs

    def edges(self, circuit: Sequence[Edge]) -> list[CircuitEdge]:
        """The edges of a circuit, the strongest of them patched one by one."""
        order = sorted(circuit, key=lambda edge: -abs(float(self._scores[edge])))
        patched = order[:_PATCHED]
        effects = torch.stack([patcher.patch_edges(patched) for patcher in self.patchers]).mean(0).tolist()
        return [
            CircuitEdge(
                sender=str(self._graph.senders[sender]),
                receiver=str(self._graph.receivers[receiver]),
                score=float(self._scores[sender, receiver]),
                effect=effects[at] if at < len(patched) else None,
            )
            for at, (sender, receiver) in enumerate(order)
        ]

    def parts(self, circuit: Sequence[Edge]) -> list[CircuitPart]:
        """The heads and MLPs of a circuit."""
        sent: dict[int, list[float]] = {}
        for sender, receiver in circuit:
            sent.setdefault(sender, []).append(abs(float(self._scores[sender, receiver])))
        found: list[CircuitPart] = []
        for at, sizes in sorted(sent.items(), key=lambda item: -sum(item[1])):
            node = self._graph.senders[at]
            if node.layer is not None:
                found.append(CircuitPart(layer=node.layer, head=node.head, edges=len(sizes), score=sum(sizes)))
        return found
