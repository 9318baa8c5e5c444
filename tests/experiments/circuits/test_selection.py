"""Circuits out of scored edges, random circuits, and their faithfulness."""

from __future__ import annotations

import random

import pytest
import torch

from nnterp_mcp.experiments.circuits.edge_graph import EdgeGraph, make_edge_graph
from nnterp_mcp.experiments.circuits.faithfulness import areas, estimate_faithfulness, measure_circuit, sizes_of
from nnterp_mcp.experiments.circuits.selection import Edge, as_mask, draw_circuit, prune_edges, rank_edges
from tests.experiments.circuits.test_edge_patching import case_of, standardized


@pytest.fixture(scope="module")
def graph() -> EdgeGraph:
    with torch.no_grad():
        return make_edge_graph(standardized("llama"))


def edge(graph: EdgeGraph, sender: str, receiver: str) -> Edge:
    senders, receivers = [*map(str, graph.senders)], [*map(str, graph.receivers)]
    return senders.index(sender), receivers.index(receiver)


def test_edges_are_taken_in_from_the_logits_back(graph: EdgeGraph) -> None:
    strong = [
        edge(graph, "L2H1", "logits"),
        edge(graph, "L1H0", "L2H1 keys"),
        edge(graph, "embeddings", "L1H0 values"),
        edge(graph, "embeddings", "MLP 0"),  # stronger than all, but MLP 0 sends along no strong edge
    ]
    scores = torch.full(graph.exists.shape, 1e-3, dtype=torch.float64)
    for at, (sender, receiver) in enumerate(strong):
        scores[sender, receiver] = [1.0, -2.0, 3.0, 4.0][at]
    order = rank_edges(graph, scores)

    assert order[:3] == strong[:3]
    assert sorted(order) == sorted(map(tuple, graph.exists.nonzero().tolist()))
    assert prune_edges(graph, order[:3]) == order[:3]
    assert prune_edges(graph, order[:2]) == []
    assert prune_edges(graph, [*strong[:3], edge(graph, "L0H0", "L2H1 queries")]) == strong[:3]


def test_random_circuits_join_the_embeddings_to_the_logits(graph: EdgeGraph) -> None:
    circuits = [draw_circuit(graph, size, random.Random(seed)) for size in (30, 400) for seed in range(3)]

    assert [len(set(circuit)) for circuit in circuits] == [30] * 3 + [400] * 3
    assert all(bool(graph.exists[as_mask(graph, circuit)].all()) for circuit in circuits)
    assert all(len(prune_edges(graph, circuit)) >= 25 for circuit in circuits)
    assert len(set(map(frozenset, circuits))) == 6


def test_the_whole_graph_is_faithful_and_an_area_is_that_of_trapezoids() -> None:
    with torch.no_grad():
        case = case_of(standardized("llama"))
        order = rank_edges(case.graph, torch.rand(case.graph.exists.shape, dtype=torch.float64))
        sizes = sizes_of(len(order), (0.1, 1.0))
        circuits = [prune_edges(case.graph, order[:size]) for size in sizes]
        small, whole = (measure_circuit([case.patcher], circuit, 2) for circuit in circuits)
    found = estimate_faithfulness([case.patcher], whole)

    assert found is not None
    assert found.circuit.mean == pytest.approx(1, abs=1e-4)
    assert found.randoms == []
    assert small.random_values.shape == (1, 2)
    wanted = case.expected(as_mask(case.graph, small.edges))
    assert float(small.values) == pytest.approx(wanted, abs=2e-5)
    assert areas([0.0, 0.5, 1.0], [0.0, 1.2, 1.0]).under == pytest.approx(0.3 + 0.55)
    assert areas([0.0, 0.5, 1.0], [0.0, 1.2, 1.0]).from_one == pytest.approx(0.3 + 0.05)
