"""A circuit as a picture: its strongest edges as a graph, and faithfulness by size."""

from __future__ import annotations

import re

from nnterp_mcp.display.figure import Arrays, Curve, Curves, Figure, Graph, GraphEdge, GraphNode, Panel, some_of
from nnterp_mcp.display.routes import route_edges
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.toolset.find_circuit.result import FindCircuitResult

_EDGES = 40
"""Edges that are drawn, the strongest."""

_MLPS = 0.7
"""The left edge of the part of the MLPs, from the left (0) to the right (1)."""


def figure(result: FindCircuitResult, arrays: Arrays) -> Figure:
    """Embeddings at the bottom, logits on top; edges from senders to the components whose inputs they are."""
    panels: list[Panel] = [_graph(result)] if result.edges else []
    if result.curve:
        panels.append(_curve(result))
    prompts = f"{plural(len(result.scored), 'prompt')}, the first: " if len(result.scored) > 1 else ""
    drawn = min(len(result.edges), _EDGES)
    return Figure(
        title=f"Circuit (EAP-IG) · {result.model}",
        subtitle=prompts + " → ".join(quoted(elided(text, 160)) for text in result.texts),
        panels=panels,
        notes=[
            f"{result.metric.replace('_', ' ')}: clean {number(result.clean.mean)}, corrupted "
            f"{number(result.corrupted.mean)}. Faithfulness: 0 as corrupted, 1 as clean.",
            "Edges: by how much corrupting them would move the metric, blue down and red up.",
            *some_of(len(result.edges), drawn, "edges"),
        ],
    )


def _graph(result: FindCircuitResult) -> Graph:
    edges = result.edges[:_EDGES]
    top = max((_layer(name) or 0) for edge in edges for name in (edge.sender, edge.receiver)) + 1
    names = {*(edge.sender for edge in edges), *(_component(edge.receiver) for edge in edges)}
    rows: dict[float, list[str]] = {}
    for name in sorted(names, key=lambda name: (_height(name, top), *map(int, re.findall(r"\d+", name)))):
        rows.setdefault(_height(name, top), []).append(name)
    nodes = [
        GraphNode(name, _across(name, at, len(row), level), level)
        for level, row in enumerate(rows.values())
        for at, name in enumerate(row)
    ]
    drawn = [GraphEdge(edge.sender, _component(edge.receiver), edge.score, _input(edge.receiver)) for edge in edges]
    return Graph("strongest edges", "score", nodes, route_edges(nodes, drawn))


def _component(receiver: str) -> str:
    """The head, the MLP or the logits of a receiver."""
    return receiver.removesuffix(f" {_input(receiver)}")


def _input(receiver: str) -> str:
    return receiver.split()[-1] if receiver.startswith("L") else ""


def _layer(name: str) -> int | None:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else None


def _height(name: str, top: int) -> float:
    """The position of a node: the embeddings below layer 0, MLPs half a step above the heads of their layer."""
    layer = _layer(name)
    if layer is None:
        return -1.0 if name == "embeddings" else float(top)
    return layer + 0.5 * name.startswith("MLP")


def _across(name: str, at: int, count: int, level: int) -> float:
    """Heads on the left; MLPs on the right, not all in one line, which would hide the edges between them."""
    if name.startswith("MLP"):
        return _MLPS + 0.05 + (1 - _MLPS - 0.1) * (level % 3) / 2
    return (at + 1) / (count + 1) * (_MLPS if name.startswith("L") else 1)


def _curve(result: FindCircuitResult) -> Curves:
    sizes = result.curve
    x = [float(at) for at in range(len(sizes))]
    mean = [size.faithfulness.mean for size in sizes]
    low = [size.faithfulness.mean if size.faithfulness.low is None else size.faithfulness.low for size in sizes]
    high = [size.faithfulness.mean if size.faithfulness.high is None else size.faithfulness.high for size in sizes]
    curves = [Curve("circuit", x, mean, low if low != mean else None, high if high != mean else None)]
    drawn = [at for at, size in enumerate(sizes) if size.randoms]
    if drawn:
        randoms = [sizes[at].randoms for at in drawn]
        curves.append(
            Curve(
                "random circuits",
                [x[at] for at in drawn],
                [sum(values) / len(values) for values in randoms],
                [min(values) for values in randoms],
                [max(values) for values in randoms],
                role="control",
            )
        )
    names = {float(at): str(size.edges) for at, size in enumerate(sizes)}
    return Curves("faithfulness by size", "edges", "faithfulness", curves, names, span=(0.0, 1.0))
