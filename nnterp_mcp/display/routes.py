"""Bends of a graph's edges, so that none runs behind a node that it does not join."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from nnterp_mcp.display.figure import GraphEdge, GraphNode

Point = tuple[float, float]

WIDTH, LEVEL, STEP = 6.0, 0.34, 0.07
"""The width of a graph, the height of a level, and what one step of a bend moves an edge's middle, in inches."""

_CHARACTER, _HEIGHT, _MARGIN = 0.072, 0.18, 0.1
"""A label's width by character, its box's height, and what the box is wider than the label."""

_MOST = 12
"""Steps of the strongest bend that is tried."""

_POINTS = 25
"""Points of a curve at which it is looked for boxes, and drawn."""


def route_edges(nodes: Sequence[GraphNode], edges: Sequence[GraphEdge]) -> list[GraphEdge]:
    """The edges, each with the least bend that leads past other nodes and apart from edges that join the same two."""
    at = {node.name: (node.x * WIDTH, node.level * LEVEL) for node in nodes}
    taken: set[tuple[str, str, float]] = set()
    routed: list[GraphEdge] = []
    for edge in edges:
        free = [bend for bend in _bends() if (edge.sender, edge.receiver, bend) not in taken]
        bend = next((one for one in free if not _hits(edge, one, at)), free[0])
        taken.add((edge.sender, edge.receiver, bend))
        routed.append(replace(edge, bend=bend))
    return routed


def _bends() -> list[float]:
    return [0.0, *chain.from_iterable((float(size), float(-size)) for size in range(1, _MOST + 1))]


def points_of(start: Point, end: Point, bend: float) -> list[Point]:
    """Points of an edge, in inches: a parabola whose middle is so many steps to the left of the straight line."""
    (x, y), (right, high) = start, end
    length = math.hypot(right - x, high - y) or 1.0
    aside = (-(high - y) / length * STEP * bend, (right - x) / length * STEP * bend)
    shares = [at / (_POINTS - 1) for at in range(_POINTS)]
    bows = [4 * share * (1 - share) for share in shares]
    return [
        (x + share * (right - x) + bow * aside[0], y + share * (high - y) + bow * aside[1])
        for share, bow in zip(shares, bows, strict=True)
    ]


def _hits(edge: GraphEdge, bend: float, at: Mapping[str, Point]) -> bool:
    """True where it runs through the box of a node that is none of its ends."""
    points = points_of(at[edge.sender], at[edge.receiver], bend)
    others = [(name, place) for name, place in at.items() if name not in (edge.sender, edge.receiver)]
    return any(
        abs(x - left) < (_CHARACTER * len(name) + _MARGIN) / 2 and abs(y - level) < _HEIGHT / 2
        for name, (left, level) in others
        for x, y in points
    )
