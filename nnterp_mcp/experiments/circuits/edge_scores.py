"""Edge attribution patching with integrated gradients: the effect of patching every edge, to first order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.experiments.attribution.recorded_pass import gradients
from nnterp_mcp.experiments.circuits.edge_graph import GraphLayer
from nnterp_mcp.experiments.circuits.edge_patching import EdgePatcher, run_split
from nnterp_mcp.experiments.circuits.split_pass import SlopePass
from nnterp_mcp.model.memory import free, of_pass

_SHARE = 0.5
"""The share of the free memory that autograd's activations may take."""


def midpoints(steps: int) -> list[float]:
    """The middles of so many pieces of the way from the clean embeddings (0) to the corrupted ones (1)."""
    return [(at + 0.5) / steps for at in range(steps)]


def score_edges(patcher: EdgePatcher, shares: Sequence[float]) -> Float[Tensor, "sender receiver"]:
    """Estimates by how much patching each edge alone would move the metric.

    The score of an edge is (the sender's write in the corrupted run − that in the clean run) · the metric's slope along
    the receiver's input, which is the residual stream before the receiver's norm. Slopes are averaged over runs whose
    embeddings lie between those of the two prompts, since at either end what decides may be saturated and have none.
    Positions are summed.

    One backward pass hands over the slopes layer by layer, and none is kept. Where the rows of all layers do not fit
    the memory, there is one pass for every few layers.

    Args:
        patcher: The pair.
        shares: How far each run is on the way from the clean embeddings to the corrupted ones. 0 alone is edge
            attribution patching without integration.

    Returns:
        The score of each edge, in the metric's unit, on the CPU; 0 where there is no edge.

    Source: Hanna et al., "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms"
    (2024); Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery" (2023).
    """
    graph = patcher.graph
    difference = patcher.corrupted - patcher.clean
    scores = torch.zeros(len(graph.senders), len(graph.receivers), dtype=torch.float64)

    def add(layer: GraphLayer | None, slope: Float[Tensor, "copy receiver position hidden"]) -> None:
        columns = slice(-1, None) if layer is None else layer.receivers
        senders = len(graph.senders) if layer is None else layer.before_mlp
        products = torch.einsum("sph,crph->sr", difference[:senders], slope.float())
        scores[:senders, columns] += products.double().cpu() / len(shares)

    with gradients(graph.model.module):
        for start in range(0, len(shares), patcher.copies):
            along = torch.tensor(shares[start : start + patcher.copies], device=difference.device)[:, None, None]
            for layers in _groups(patcher, len(along)):
                check_cancelled()
                entry = (patcher.clean[:1] + along * difference[:1]).requires_grad_()
                visitor = SlopePass(graph, entry, layers, add)
                metric = patcher.metric(run_split(graph, patcher.given, visitor)).sum()
                torch.autograd.grad(metric, entry)
    return torch.where(graph.exists, scores, 0)


def _groups(patcher: EdgePatcher, copies: int) -> list[list[GraphLayer]]:
    """The layers in groups whose rows fit the memory together."""
    graph, model = patcher.graph, patcher.graph.model
    rows = copies * max(3 * layer.heads + 2 for layer in graph.layers)
    patterns = model.attention == "eager"
    whole = of_pass(model, copies, len(patcher.given), patterns, len(graph.layers))
    each = of_pass(model, rows, len(patcher.given), patterns)
    count = max(1, int((_SHARE * free(model.device) - whole) // each))
    return [list(graph.layers[start : start + count]) for start in range(0, len(graph.layers), count)]
