"""Edges of graphs: straight where nothing is in the way, and each apart from the others."""

from __future__ import annotations

import pytest

from nnterp_mcp.display.figure import GraphEdge, GraphNode
from nnterp_mcp.display.routes import LEVEL, STEP, WIDTH, points_of, route_edges

NODES = [GraphNode("L0H1", 0.5, 0), GraphNode("L1H2", 0.5, 1), GraphNode("L2H0", 0.5, 2), GraphNode("MLP 2", 0.9, 2)]


def test_an_edge_goes_around_a_node_that_it_does_not_join() -> None:
    straight, around = route_edges(NODES, [GraphEdge("L0H1", "L1H2", 1.0), GraphEdge("L0H1", "L2H0", 1.0)])
    assert straight.bend == 0
    # Half of a box of four characters, of 0.072 inches each with 0.1 between them and the edges.
    assert abs(around.bend) * STEP > (4 * 0.072 + 0.1) / 2

    points = points_of((0.5 * WIDTH, 0.0), (0.5 * WIDTH, 2 * LEVEL), around.bend)
    assert [*points[0], *points[-1]] == pytest.approx([3.0, 0.0, 3.0, 0.68])
    middle = points[len(points) // 2]
    assert middle == pytest.approx((3.0 - STEP * around.bend, LEVEL))


def test_edges_between_the_same_two_are_drawn_apart() -> None:
    three = [GraphEdge("L0H1", "MLP 2", value, label) for value, label in ((2.0, "a"), (-1.0, "b"), (0.5, "c"))]
    bends = [edge.bend for edge in route_edges(NODES, three)]
    assert bends[0] == 0
    assert len(set(bends)) == 3
