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
from nnterp_mcp.experiments.circuits.faithfulness import CircuitRuns, areas, estimate_faithfulness
from nnterp_mcp.experiments.circuits.selection import Edge
from nnterp_mcp.experiments.patching.corruption import put_in_force
from nnterp_mcp.experiments.statistics.bootstrap import estimate_mean
from nnterp_mcp.toolset.find_circuit.params import FindCircuitParams
from nnterp_mcp.toolset.find_circuit.result import CircuitEdge, CircuitPart, CircuitSize, FindCircuitResult
from nnterp_mcp.toolset.find_circuit.stages import PATCHED, Stage, Stages
from nnterp_mcp.worker.job import Finished, Job
from nnterp_mcp.worker.pairs import make_pairs

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


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
    stages = Stages(params, graph, patchers)
    measured = stages.patchers(stages.measured)
    texts = [pairs[0].clean.prompt.text, *([pairs[0].corrupted.prompt.text] if pairs[0].corrupted else [])]
    base = FindCircuitResult(
        model=bench.handle,
        metric=metric,
        corruption=how,
        in_force=list(pairs[0].clean.plan.labels),
        texts=texts,
        scored=[pairs[at].index for at in stages.scored],
        measured=[pairs[at].index for at in stages.measured],
        steps=params.steps,
        total=int(graph.exists.sum()),
        clean=_mean([patcher.clean_value for patcher in measured]),
        corrupted=_mean([patcher.corrupted_value for patcher in measured]),
        categories=targets[0].words,
        shared=targets[0].shared,
        curve=[],
        under=None,
        from_one=None,
        circuit=None,
        edges=[],
        parts=[],
        agreement=0.0,
        pearson=None,
    )

    def compute(group: Sequence[int]) -> list[Stage]:
        return [stages.compute(number, job.progress) for number in group]

    def assemble(finished: Finished[Stage]) -> FindCircuitResult:
        scores = stages.scores()
        job.keep("scores", scores.float(), {"sender": _names(graph.senders), "receiver": _names(graph.receivers)})
        found = _Circuits(graph, scores, stages)
        update = found.measured() if stages.curve() else {"edges": found.strongest()}
        scored = base.scored[: stages.pairs_done]
        return base.model_copy(update={**update, "scored": scored, "sizes_left": stages.sizes_left})

    return job.in_parts(stages.groups, Stage, compute, assemble, "stages", found=stages.found)


def _mean(values: Sequence[float]) -> Measured:
    (found,) = estimate_mean(torch.tensor(values)[:, None])
    return Measured(mean=found.mean, low=found.low, high=found.high)


def _pearson(both: Tensor) -> float | None:
    if both.shape[1] < 3 or not bool((both.std(1) > 0).all()):
        return None
    return float(torch.corrcoef(both)[0, 1])


def _names(nodes: Sequence[Any]) -> list[int | str]:
    return [str(node) for node in nodes]


class _Circuits:
    """The part of a result that stages have measured so far."""

    def __init__(self, graph: EdgeGraph, scores: Tensor, stages: Stages) -> None:
        self._graph = graph
        self._scores = scores
        self._stages = stages

    def measured(self) -> dict[str, Any]:
        """The curve, and the circuit with its edges and parts; nothing where clean and corrupted runs do not differ."""
        runs, chosen = self._stages.curve(), self._stages.chosen()
        curve = self._curve(runs)
        if chosen is None:
            return {"curve": curve}
        edges = self._edges(self._stages.strongest(runs[chosen].edges))
        effects = [edge.effect for edge in edges if edge.effect is not None]
        both = torch.tensor([[edge.score for edge in edges[: len(effects)]], effects], dtype=torch.float64)
        whole = len(curve) > 1 and not self._stages.sizes_left
        area = areas([size.share for size in curve], [size.faithfulness.mean for size in curve]) if whole else None
        return {
            "curve": curve,
            "under": None if area is None else area.under,
            "from_one": None if area is None else area.from_one,
            "circuit": chosen,
            "edges": edges,
            "parts": self._parts(runs[chosen].edges),
            "agreement": float((both[0].sign() == both[1].sign()).double().mean()) if effects else 0.0,
            "pearson": _pearson(both),
        }

    def strongest(self) -> list[CircuitEdge]:
        """The edges with the largest scores so far, before any circuit is measured."""
        every = [(sender, receiver) for sender, receiver in self._graph.exists.nonzero().tolist()]
        return self._edges(self._stages.strongest(every)[:PATCHED])

    def _curve(self, runs: Sequence[CircuitRuns]) -> list[CircuitSize]:
        curve: list[CircuitSize] = []
        for one in runs:
            found = estimate_faithfulness(self._stages.patchers(self._stages.measured), one)
            if found is None:
                return []
            curve.append(
                CircuitSize(
                    edges=len(one.edges),
                    share=len(one.edges) / int(self._graph.exists.sum()),
                    faithfulness=Measured(mean=found.circuit.mean, low=found.circuit.low, high=found.circuit.high),
                    randoms=found.randoms,
                )
            )
        return curve

    def _edges(self, order: Sequence[Edge]) -> list[CircuitEdge]:
        """Edges, the strongest of which may have been patched one by one."""
        effects = self._stages.effects
        return [
            CircuitEdge(
                sender=str(self._graph.senders[sender]),
                receiver=str(self._graph.receivers[receiver]),
                score=float(self._scores[sender, receiver]),
                effect=effects[at] if at < len(effects) else None,
            )
            for at, (sender, receiver) in enumerate(order)
        ]

    def _parts(self, circuit: Sequence[Edge]) -> list[CircuitPart]:
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
