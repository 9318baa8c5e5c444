"""Path patching: what senders do to the answer through the direct paths to some receivers, and no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from nnterp_mcp.engine.branches import RowBatch, RowRunner
from nnterp_mcp.engine.hook_points import Place, in_order, require_place
from nnterp_mcp.engine.kv_cache import SharedCache
from nnterp_mcp.engine.puts import Input, Put, Row
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer


@dataclass(frozen=True)
class Receiver:
    """Where a path ends.

    Attributes:
        place: Queries, keys or values, or the output of heads, of attention or of an MLP.
        heads: The heads; None for all, or where there are none.
    """

    place: Place
    heads: Sequence[int] | None = None


class PathRunner:
    """Runs rows whose puts act along direct paths alone.

    A first run puts in the senders' states and holds every other head at what it is in the unpatched run; what the
    receivers then get is put into a second run, in which all is free. Without receivers the logits of the first run are
    the result: the direct effect. Residual connections are the paths; MLPs on the way belong to them, unless they are
    held too.

    Args:
        model: The model.
        base: The input that is patched.
        receivers: Where paths end; empty for the logits.
        through_mlps: Whether MLPs are recomputed; else they are held.
        batch_tokens: Tokens in a batch, at most, over all its rows.
        cache: Keys and values of the whole input, where a run of it kept them.

    Raises:
        Unsupported: A layer moves information between positions by something else than attention.

    Source: Wang et al., "Interpretability in the Wild" (2022), where MLPs are recomputed; Goldowsky-Dill et al.,
    "Localizing Model Behavior with Path Patching" (2023), where they are not.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        base: Input,
        receivers: Sequence[Receiver],
        through_mlps: bool = True,
        *,
        batch_tokens: int = 4096,
        cache: SharedCache | None = None,
    ) -> None:
        self._receivers = receivers
        self._base = base
        places = in_order(receiver.place for receiver in receivers)
        for place in places:
            require_place(model, place)
        self._end = places[-1].turn if places else (model.num_layers, 0)
        self._sending = RowRunner(
            model,
            base,
            held=[place for place in _held(model, through_mlps) if place.turn < self._end],
            reads=places,
            logits=not receivers,
            batch_tokens=batch_tokens,
            cache=cache,
        )
        self._receiving = RowRunner(model, base, batch_tokens=batch_tokens, cache=cache)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> Iterator[RowBatch]:
        """Runs rows, in batches; those that reach no receiver are left out: they are the unpatched run."""
        early = [row for row, puts in enumerate(rows) if any(put.place.turn < self._end for put in puts)]
        for sent in self._sending.run([rows[row] for row in early]):
            numbers = [early[row] for row in sent.rows]
            if self._receivers:
                yield from self._receive(sent, numbers)
            else:
                yield replace(sent, rows=numbers)

    def _receive(self, sent: RowBatch, numbers: Sequence[int]) -> Iterator[RowBatch]:
        received = {number: self._received(sent, row) for row, number in enumerate(numbers)}
        reached = [number for number, puts in received.items() if puts]
        for batch in self._receiving.run([received[number] for number in reached]):
            yield replace(batch, rows=[reached[row] for row in batch.rows])

    def _received(self, sent: RowBatch, row: int) -> list[Put]:
        """What the receivers of one row get; those that the model had passed before the row began get nothing."""
        positions = range(sent.first, len(self._base))
        puts: list[Put] = []
        for receiver in self._receivers:
            states = sent.states[receiver.place]
            if row < len(states):
                own = states[row] if receiver.heads is None else states[row][:, list(receiver.heads)]
                puts.append(Put(receiver.place, positions, own, receiver.heads))
        return puts


def _held(model: StandardizedTransformer, through_mlps: bool) -> list[Place]:
    """Where rows are held: each head of each layer, where heads can be told apart, and the MLPs if they are to be."""
    held: list[Place] = []
    for layer in model.anatomy.layers:
        if layer.mixers:
            raise Unsupported(
                f"layer {layer.index} of {model.name} moves information between positions by {layer.mixers[0]}: paths "
                "are told apart in models with attention alone."
            )
        if layer.attention is not None:
            site = "attentions_output" if layer.output_projection is None else "heads_output"
            held.append(Place(site, layer.index))
        if layer.mlp is not None and not through_mlps:
            held.append(Place("mlps_output", layer.index))
    return held
