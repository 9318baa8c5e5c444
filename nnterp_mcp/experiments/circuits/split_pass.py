"""Forward passes in which every receiver of a layer reads a residual stream of its own.

The layer runs on a batch with one row for each receiver. Queries, keys and values of a head are taken from their own
rows, the MLP's input from another; one more row is the stream itself, to which all add.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.forward import Plan, step_at
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.interpreter import visit
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attribution.linearize import freeze_norm
from nnterp_mcp.experiments.circuits.edge_graph import HEAD_INPUTS, EdgeGraph, GraphLayer
from nnterp_mcp.request.sites import Site

OnSlope = Callable[[GraphLayer | None, Float[Tensor, "copy receiver position hidden"]], None]
"""Called with the metric's slope along the inputs of a layer's receivers; None for the logits."""


class SplitPass:
    """Sees the layers of one pass over copies of a prompt, each with a residual stream of its own.

    Args:
        graph: The graph.
        entry: What enters the first layer, in place of the embeddings, once for each copy.
        layers: The layers whose receivers read rows of their own.
    """

    skipped: Collection[int] = ()

    def __init__(
        self, graph: EdgeGraph, entry: Float[Tensor, "copy position hidden"], layers: Sequence[GraphLayer]
    ) -> None:
        self._layers = {layer.index: layer for layer in layers}
        self.graph = graph
        self.entry = entry
        self.places = [graph.entry, *(place for layer in layers for place in layer.places), graph.end]
        self.places = sorted(set(self.places), key=lambda place: place.turn)

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Splits, joins or reads the rows at one place."""
        layer = self._layers.get(cast("int", place.layer))
        if place == self.graph.entry:
            value = self.entry.to(value)
        if layer is None:
            return self.finish(value) if place == self.graph.end else value
        if place.site == "layers_input":
            return self.split(layer, value).flatten(0, 1)
        if place.site in HEAD_INPUTS:
            return self._of_heads(layer, place.site, value)
        if place.site == "heads_output":
            self.on_heads(layer, states := self._rows(layer, value)[:, 0].contiguous())
            return states
        if place.site == "attentions_raw_output":
            self.on_raw_attention(layer, value)
            return value
        if place.site == "attentions_output":
            return self.on_attention(layer, value, _copied(layer, value)).flatten(0, 1).contiguous()
        if place.site == "mlps_input":
            return self._rows(layer, value)[:, -2].contiguous()
        if place.site == "mlps_output":
            self.on_mlp(layer, value)
            return _copied(layer, value).flatten(0, 1).contiguous()
        stream = self._rows(layer, value)[:, -1].contiguous()
        return self.finish(stream) if place == self.graph.end else stream

    def split(
        self, layer: GraphLayer, stream: Float[Tensor, "copy position hidden"]
    ) -> Float[Tensor, "copy row position hidden"]:
        """The rows of a layer: one for each receiver, and the stream itself."""
        return _copied(layer, stream)

    def on_heads(self, layer: GraphLayer, states: Float[Tensor, "copy position head width"]) -> None:
        """Sees what the heads of a layer hand to the output projection."""

    def on_raw_attention(self, layer: GraphLayer, states: Float[Tensor, "copy position hidden"]) -> None:
        """Sees what the output projection returns, where a norm follows."""

    def on_attention(self, layer: GraphLayer, states: Tensor, rows: Tensor) -> Tensor:
        """The rows of what attention adds to the stream."""
        return rows

    def on_mlp(self, layer: GraphLayer, states: Float[Tensor, "copy position hidden"]) -> None:
        """Sees what the MLP adds to the stream."""

    def finish(self, stream: Float[Tensor, "copy position hidden"]) -> Float[Tensor, "copy position hidden"]:
        """The input of the final norm."""
        return stream

    def _rows(self, layer: GraphLayer, value: Tensor) -> Tensor:
        """A batch by copy and row."""
        return value.unflatten(0, (len(self.entry), _rows_of(layer)))

    def _of_heads(self, layer: GraphLayer, site: Site, value: Tensor) -> Tensor:
        """Queries, keys or values, those of each head from the row that is its own."""
        if value.shape[1] != layer.heads:
            raise Unsupported(
                f"the {site} of layer {layer.index} of {self.graph.model.name} are not there for each of its "
                f"{layer.heads} heads."
            )
        heads = torch.arange(layer.heads, device=value.device)
        own = self._rows(layer, value)[:, HEAD_INPUTS.index(site) * layer.heads + heads, heads]
        return _copied(layer, own).flatten(0, 1)


class SlopePass(SplitPass):
    """A pass whose backward pass hands over the metric's slope along every receiver's input.

    Args:
        graph: The graph.
        entry: The embeddings of each copy.
        layers: The layers whose receivers are looked at.
        on_slope: Gets the slopes, layer by layer from the last.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        entry: Float[Tensor, "copy position hidden"],
        layers: Sequence[GraphLayer],
        on_slope: OnSlope,
    ) -> None:
        super().__init__(graph, entry, layers)
        self._on_slope = on_slope

    def split(
        self, layer: GraphLayer, stream: Float[Tensor, "copy position hidden"]
    ) -> Float[Tensor, "copy row position hidden"]:
        """The rows, whose slopes are handed over."""
        rows = _copied(layer, stream).clone()
        rows.register_hook(lambda slope: self._on_slope(layer, slope[:, :-1]))  # pyright: ignore[reportUnknownMemberType]
        return rows

    def finish(self, stream: Float[Tensor, "copy position hidden"]) -> Float[Tensor, "copy position hidden"]:
        """The stream, whose slope is handed over with the last layer's."""
        if self.graph.layers[-1].index not in self._layers:
            return stream
        end = stream.view_as(stream)
        end.register_hook(lambda slope: self._on_slope(None, slope[:, None]))  # pyright: ignore[reportUnknownMemberType]
        return end


class PatchedPass(SplitPass):
    """A pass in which edges carry what their senders wrote in a corrupted run.

    Args:
        graph: The graph.
        entry: The embeddings of the run that is patched, once for each copy.
        corrupted: What each sender writes in the corrupted run; None where no edge is patched.
        patched: 1 for an edge that carries the corrupted write, 0 for one that carries the run's own.

    Attributes:
        written: What each sender writes in each copy; where edges are patched, what it writes in the corrupted run
            beyond that.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        entry: Float[Tensor, "copy position hidden"],
        corrupted: Float[Tensor, "sender position hidden"] | None = None,
        patched: Float[Tensor, "copy sender receiver"] | None = None,
    ) -> None:
        super().__init__(graph, entry, graph.layers)
        self.written = torch.zeros(len(entry), len(graph.senders), *entry.shape[1:], device=entry.device)
        self._corrupted = corrupted
        self._patched = patched
        self._keep(slice(0, 1), entry[:, None])
        self._heads = self._raw = entry

    def split(
        self, layer: GraphLayer, stream: Float[Tensor, "copy position hidden"]
    ) -> Float[Tensor, "copy row position hidden"]:
        """The rows, each without what its own patched edges carry and with what they carry in the corrupted run."""
        rows = _copied(layer, stream)
        if self._patched is None:
            return rows
        changes = self._changes(slice(0, layer.writes), layer.receivers)
        return torch.cat([rows[:, :-1] + changes.to(rows), rows[:, -1:]], 1)

    def on_heads(self, layer: GraphLayer, states: Float[Tensor, "copy position head width"]) -> None:
        """Keeps them until the scale of a norm behind them is known."""
        self._heads = states

    def on_raw_attention(self, layer: GraphLayer, states: Float[Tensor, "copy position hidden"]) -> None:
        """Keeps what the norm behind attention reads."""
        self._raw = states

    def on_attention(self, layer: GraphLayer, states: Tensor, rows: Tensor) -> Tensor:
        """Splits what attention writes by head, and patches the edges from these to the layer's own MLP."""
        own = slice(layer.writes, layer.writes + layer.heads)
        self._keep(own, self._by_head(layer))
        if self._patched is None or not layer.sequential:
            return rows
        mlp = layer.receivers.stop - 1
        changes = self._changes(own, slice(mlp, mlp + 1))
        return torch.cat([rows[:, :-2], rows[:, -2:-1] + changes.to(rows), rows[:, -1:]], 1)

    def on_mlp(self, layer: GraphLayer, states: Float[Tensor, "copy position hidden"]) -> None:
        """Keeps what the MLP writes."""
        own = layer.writes + layer.heads
        self._keep(slice(own, own + 1), states[:, None].float())

    def finish(self, stream: Float[Tensor, "copy position hidden"]) -> Float[Tensor, "copy position hidden"]:
        """The stream, with the edges to the logits patched."""
        if self._patched is None:
            return stream
        return stream + self._changes(slice(0, None), slice(-1, None))[:, 0].to(stream)

    def _changes(self, senders: slice, receivers: slice) -> Float[Tensor, "copy receiver position hidden"]:
        """The change that patched edges from some senders make at some receivers."""
        assert self._patched is not None
        patched = self._patched[:, senders, receivers].transpose(1, 2)
        return (patched @ self.written[:, senders].flatten(2)).unflatten(2, self.written.shape[2:])

    def _keep(self, senders: slice, states: Float[Tensor, "copy sender position hidden"]) -> None:
        """Keeps what senders write."""
        self.written[:, senders] = states if self._corrupted is None else self._corrupted[senders] - states

    @torch.no_grad()
    def _by_head(self, layer: GraphLayer) -> Float[Tensor, "copy head position hidden"]:
        """The share of each head in the stream: a norm behind the heads has the scale that it has in the run."""
        model = self.graph.model
        projection = model.anatomy.layers[layer.index].output_projection
        assert projection is not None
        write = layer.attention
        with model.standing_down():
            weight = _weight(projection.module, self._heads).unflatten(0, self._heads.shape[-2:])
            states = torch.einsum("cphw,hwo->chpo", self._heads.to(weight), weight).float()
            if write.norm is not None:
                norm = freeze_norm(write.norm, self._raw.flatten(0, 1).double())
                centred = states - states.mean(-1, keepdim=True) if norm.centres else states
                states = centred * norm.gain.float().unflatten(0, self._raw.shape[:2])[:, None]
        return states * write.multiplier


class OperatedPass:
    """A split pass under the operations on its input: at each hook point they come first, on every row alike.

    Args:
        passed: The pass.
        given: The input with its operations, none of which takes states from elsewhere in the pass.
    """

    skipped: Collection[int] = ()

    def __init__(self, passed: SplitPass, given: Input) -> None:
        self.places = in_order([*passed.places, *given.edits])
        self._passed = passed
        self._given = given

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Makes the operations, then splits, joins or reads the rows."""
        if place in self._given.edits:
            rows = value.shape[0]
            window = Window([self._given.prompt] * rows, [0] * rows, 0, len(self._given))
            value = visit(value, step_at(place, value.shape, value.device, window, Plan(self._given.edits)), {}, {})
        return self._passed.visit(place, value) if place in self._passed.places else value


def _rows_of(layer: GraphLayer) -> int:
    return 3 * layer.heads + 2


def _copied(layer: GraphLayer, states: Float[Tensor, " copy *state"]) -> Float[Tensor, "copy row *state"]:
    """The states of each copy, for every row."""
    return states[:, None].expand(-1, _rows_of(layer), *states.shape[1:])


def _weight(projection: nn.Module, like: Tensor) -> Float[Tensor, "in out"]:
    """The matrix of a linear map, however its module stores it."""
    if isinstance(projection, nn.Linear) and projection.weight.is_floating_point():
        return projection.weight.T
    if isinstance(projection, Conv1D):
        return projection.weight
    width = like.shape[-2] * like.shape[-1]
    unit = torch.eye(width, dtype=like.dtype, device=like.device)[None]
    return (projection(unit) - projection(torch.zeros_like(unit[:, :1])))[0]
