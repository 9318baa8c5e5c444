"""The computational graph of a model: components that write to the residual stream, and inputs that read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from nnterp_mcp.engine.executors.execution import find_ports
from nnterp_mcp.engine.forward import NOTHING
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attribution.recorded_pass import gradients, record
from nnterp_mcp.experiments.attribution.sublayer_writes import Write, find_writes
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt
from nnterp_mcp.request.sites import Site

NodeKind = Literal["embeddings", "head", "queries", "keys", "values", "mlp", "logits"]

HEAD_INPUTS: tuple[Site, ...] = ("queries", "keys", "values")
"""The inputs of a head, each a receiver of its own."""

_SITES: tuple[Site, ...] = (
    "layers_input",
    "heads_output",
    "attentions_output",
    "mlps_input",
    "mlps_output",
    "layers_output",
)
"""The points at which the rows of a layer are split, joined and read, its heads' inputs aside."""

_TOKENS = (1, 2, 3)
"""The prompt on which it is seen what MLPs read."""


@dataclass(frozen=True)
class Node:
    """The end of an edge.

    Attributes:
        kind: A sender is the embeddings, a head or an MLP; a receiver is the queries, keys or values of a head, an MLP
            or the logits.
        layer: The layer; None for embeddings and logits.
        head: The head; None where it is none.
    """

    kind: NodeKind
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """As tables name it: embeddings, L5H3, L5H3 queries, MLP 5, logits."""
        if self.layer is None:
            return self.kind
        if self.head is None:
            return f"MLP {self.layer}"
        return f"L{self.layer}H{self.head}" + ("" if self.kind == "head" else f" {self.kind}")


@dataclass(frozen=True)
class GraphLayer:
    """One layer of the graph.

    Attributes:
        index: The layer.
        heads: The number of its heads.
        writes: How many senders write before it; its own heads and its MLP follow them.
        reads: How many receivers read before it; its own follow: queries, keys and values of each head, then the MLP.
        attention: How attention enters the residual stream.
        sequential: The MLP reads what the layer's attention wrote; it does not where the two are parallel.
    """

    index: int
    heads: int
    writes: int
    reads: int
    attention: Write
    sequential: bool

    @property
    def places(self) -> list[Place]:
        """The hook points at which a pass that tells its receivers apart stops."""
        raw: tuple[Site, ...] = () if self.attention.norm is None else ("attentions_raw_output",)
        return [Place(site, self.index) for site in (*_SITES, *HEAD_INPUTS, *raw)]

    @property
    def receivers(self) -> slice:
        """Its receivers."""
        return slice(self.reads, self.reads + 3 * self.heads + 1)

    @property
    def before_mlp(self) -> int:
        """The number of senders that write before its MLP reads."""
        return self.writes + (self.heads if self.sequential else 0)


@dataclass(frozen=True)
class EdgeGraph:
    """Senders and receivers, each a row or a column of a table of edges.

    Attributes:
        model: The model.
        layers: The layers.
    """

    model: StandardizedTransformer
    layers: Sequence[GraphLayer]

    @cached_property
    def senders(self) -> list[Node]:
        """The embeddings, then for each layer its heads and its MLP."""
        found = [Node("embeddings")]
        for layer in self.layers:
            found += [Node("head", layer.index, head) for head in range(layer.heads)]
            found.append(Node("mlp", layer.index))
        return found

    @cached_property
    def receivers(self) -> list[Node]:
        """For each layer queries, keys and values of its heads, and its MLP; then the logits."""
        found: list[Node] = []
        for layer in self.layers:
            kinds: tuple[NodeKind, ...] = ("queries", "keys", "values")
            found += [Node(kind, layer.index, head) for kind in kinds for head in range(layer.heads)]
            found.append(Node("mlp", layer.index))
        return [*found, Node("logits")]

    @cached_property
    def exists(self) -> Bool[Tensor, "sender receiver"]:
        """True where there is an edge: the sender writes before the receiver reads."""
        found = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool)
        for layer in self.layers:
            found[: layer.writes, layer.receivers] = True
            found[: layer.before_mlp, layer.receivers.stop - 1] = True
        found[:, -1] = True
        return found

    @cached_property
    def component(self) -> list[int]:
        """For each receiver, the sender that it is an input of; the number of senders for the logits."""
        of = {(node.layer, node.head): at for at, node in enumerate(self.senders)}
        return [of[node.layer, node.head] for node in self.receivers[:-1]] + [len(self.senders)]

    @cached_property
    def inputs(self) -> list[list[int]]:
        """The receivers that are inputs of each sender, and last the logits."""
        found: list[list[int]] = [[] for _ in range(len(self.senders) + 1)]
        for receiver, sender in enumerate(self.component):
            found[sender].append(receiver)
        return found

    @cached_property
    def sources(self) -> list[range]:
        """The senders that write before each receiver reads: all up to some."""
        return [range(count) for count in self.exists.sum(0).tolist()]

    @property
    def entry(self) -> Place:
        """The point at which the embeddings enter the first layer."""
        return Place("layers_input", self.layers[0].index)

    @property
    def end(self) -> Place:
        """The point at which the residual stream leaves the last layer."""
        return Place("layers_output", self.layers[-1].index)


def make_edge_graph(model: StandardizedTransformer) -> EdgeGraph:
    """The graph of a model's attention heads and MLPs.

    Raises:
        Unsupported: A layer's writes to the residual stream are not those of its heads and its MLP, or the inputs of
            its heads cannot be told apart.
    """
    model.require("gradients")
    if model.anatomy.streams > 1:
        raise Unsupported(f"{model.name} has {model.anatomy.streams} residual streams: edges are told apart in one.")
    running = [layer for layer in model.anatomy.layers if layer.runs]
    writes = find_writes(model)
    layers: list[GraphLayer] = []
    sent, read = 1, 0
    for facts in running:
        found = writes[facts.index]
        if found is None or found.rest or len(found.sublayers) < 2 or facts.mixers:
            raise Unsupported(
                f"layer {facts.index} of {model.name} does not add its heads and one MLP, and nothing else, to the "
                "residual stream: its edges cannot be told apart.",
                "Patch activations there.",
            )
        attention = found.sublayers["attentions_output"]
        if attention.factor != 1 or found.sublayers["mlps_output"].factor != 1:
            raise Unsupported(
                f"layer {facts.index} of {model.name} adds a multiple of what its attention or MLP wrote."
            )
        layers.append(GraphLayer(facts.index, facts.num_heads, sent, read, attention, sequential=True))
        sent, read = sent + facts.num_heads + 1, read + 3 * facts.num_heads + 1
    places = [place for layer in layers for place in layer.places]
    for place in places:
        require_place(model, place)
    if find_ports(model, places) is None:
        raise Unsupported(f"the edges of {model.name} are out of reach: its layers share a module, or are renamed.")
    reads = _reads_attention(model, [layer.index for layer in layers])
    return EdgeGraph(model, [replace(layer, sequential=one) for layer, one in zip(layers, reads, strict=True)])


def _reads_attention(model: StandardizedTransformer, layers: Sequence[int]) -> list[bool]:
    """For each layer, True where autograd finds a way from attention's output to the MLP's input."""
    ids = torch.tensor([[token % model.vocab_size for token in _TOKENS]], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch([EncodedPrompt(0, "", ids[0].tolist(), [])], inputs, [0])
    written = [Place("attentions_output", layer) for layer in layers]
    read = [Place("mlps_input", layer) for layer in layers]
    with gradients(model.module):
        states = record(model, batch, NOTHING, [*written, *read]).states
        slopes = [
            torch.autograd.grad(states[end].sum(), states[start], retain_graph=True, allow_unused=True)[0]
            for start, end in zip(written, read, strict=True)
        ]
    return [slope is not None for slope in slopes]  # pyright: ignore[reportUnnecessaryComparison] - see allow_unused
