"""Circuits out of edges: those of the highest scores that join the embeddings to the logits, and random ones."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.experiments.circuits.edge_graph import EdgeGraph

Edge = tuple[int, int]
"""A sender and a receiver, as indices into a graph."""


def rank_edges(graph: EdgeGraph, scores: Float[Tensor, "sender receiver"]) -> list[Edge]:
    """Every edge in the order in which a circuit takes it in: the largest score first, of those that reach the logits.

    It begins with the edges to the logits. Once a head or an MLP sends along an edge of the circuit, the edges to its
    own inputs can be taken in too.

    Args:
        scores: The score of each edge; the sign does not count.

    Source: Hanna et al., "Have Faith in Faithfulness" (2024).
    """
    inputs = graph.inputs
    sizes = scores.abs().tolist()
    open_edges: list[tuple[float, int, int]] = []
    order: list[Edge] = []
    reached = {len(graph.senders)}
    _open(open_edges, graph, inputs[-1], sizes)
    while open_edges:
        _, sender, receiver = heapq.heappop(open_edges)
        order.append((sender, receiver))
        if sender not in reached:
            check_cancelled()
            reached.add(sender)
            _open(open_edges, graph, inputs[sender], sizes)
    return order


def _open(
    open_edges: list[tuple[float, int, int]],
    graph: EdgeGraph,
    receivers: Sequence[int],
    sizes: Sequence[Sequence[float]],
) -> None:
    """Adds the edges to some receivers to a heap, the largest score first."""
    for receiver in receivers:
        for sender in graph.sources[receiver]:
            heapq.heappush(open_edges, (-sizes[sender][receiver], sender, receiver))


def prune_edges(graph: EdgeGraph, edges: Iterable[Edge]) -> list[Edge]:
    """The edges that lie on a way from the embeddings to the logits."""
    left = list(edges)
    while True:
        fed = {0, *(graph.component[receiver] for _, receiver in left)}
        sent = {len(graph.senders), *(sender for sender, _ in left)}
        kept = [(sender, receiver) for sender, receiver in left if sender in fed and graph.component[receiver] in sent]
        if len(kept) == len(left):
            return kept
        left = kept


def draw_circuit(graph: EdgeGraph, size: int, dice: random.Random) -> list[Edge]:
    """A random circuit of as many edges: random ways from the logits back to the embeddings.

    Where these hardly find further edges, since most are in it already, the rest is drawn from all edges.

    Args:
        size: The number of edges.
        dice: The random numbers.
    """
    found: dict[Edge, None] = {}
    for _ in range(size):
        component = len(graph.senders)
        while component and len(found) < size:
            receiver = dice.choice(graph.inputs[component])
            component = dice.choice(graph.sources[receiver])
            found[component, receiver] = None
        if len(found) >= size:
            break
    if len(found) < size:
        every = ((sender, receiver) for receiver, senders in enumerate(graph.sources) for sender in senders)
        others = [edge for edge in every if edge not in found]
        found |= dict.fromkeys(dice.sample(others, size - len(found)))
    return list(found)


def as_mask(graph: EdgeGraph, edges: Sequence[Edge]) -> Bool[Tensor, "sender receiver"]:
    """True at each of some edges."""
    found = torch.zeros_like(graph.exists)
    if edges:
        senders, receivers = zip(*edges, strict=True)
        found[list(senders), list(receivers)] = True
    return found
