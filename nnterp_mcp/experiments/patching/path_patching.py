"""Path patching: what senders do to the answer through the direct paths to some receivers, and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nnterp_mcp.engine.branches import BranchBatch, Branches
from nnterp_mcp.engine.edits import StateEdit
from nnterp_mcp.engine.hook_points import Place, in_order, require_place
from nnterp_mcp.engine.replacements import Replacement, replace_states
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


class PathBranches:
    """Branches whose edits act along direct paths alone.

    A first run makes the senders' edits with every other head frozen at its state in the unpatched run; a second run,
    in which all is free, continues with the states that the receivers then get. Without receivers the logits of the
    first run are the result: the direct effect. Residual connections are the paths; MLPs on the way belong to them,
    unless they are frozen too.

    Args:
        branch: Given edits of all rows, makes the branches of each of the two runs.
        edits: The edits of all rows.
        receivers: Where paths end; empty for the logits.
        through_mlps: Recompute MLPs; else they are frozen.

    Raises:
        Unsupported: A layer moves information between positions by something else than attention.

    Source: Wang et al., "Interpretability in the Wild" (2022), where MLPs are recomputed; Goldowsky-Dill et al.,
    "Localizing Model Behavior with Path Patching" (2023), where they are not.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        branch: Callable[..., Branches],
        edits: Sequence[StateEdit],
        receivers: Sequence[Receiver],
        through_mlps: bool,
    ) -> None:
        self._branch = branch
        self._receivers = receivers
        places = in_order(receiver.place for receiver in receivers)
        for place in places:
            require_place(model, place)
        end = places[-1].turn if places else (model.num_layers, 0)
        self._sending = self._branch(
            [edit for edit in edits if edit.place.turn < end],
            frozen=[place for place in _frozen(model, through_mlps) if place.turn < end],
            reads=places,
            logits=not receivers,
        )

    @torch.inference_mode()
    def run(self) -> Iterator[BranchBatch]:
        """Runs the rows, in batches; those that reach no receiver are left out: they are the unpatched run."""
        for sent in self._sending.run():
            if self._receivers:
                yield from self._branch(replace_states(self._received(sent))).run()
            else:
                yield sent

    def _received(self, sent: BranchBatch) -> Iterator[Replacement]:
        """The states that receivers get; those that the model had passed before a row began get nothing."""
        positions = range(sent.first, len(self._sending.base))
        for receiver in self._receivers:
            heads = None if receiver.heads is None else tuple(receiver.heads)
            for row, states in zip(sent.rows, sent.states[receiver.place], strict=False):
                own = states if heads is None else states[:, list(heads)]
                yield Replacement(row, receiver.place, positions, own, heads)


def _frozen(model: StandardizedTransformer, through_mlps: bool) -> list[Place]:
    """Where rows are frozen: each head of each layer, where heads can be told apart, and MLPs if they are to be."""
    frozen: list[Place] = []
    for layer in model.anatomy.layers:
        if layer.mixers:
            raise Unsupported(
                f"layer {layer.index} of {model.name} moves information between positions by {layer.mixers[0]}: paths "
                "are told apart in models with attention alone."
            )
        if layer.attention is not None:
            site = "attentions_output" if layer.output_projection is None else "heads_output"
            frozen.append(Place(site, layer.index))
        if layer.mlp is not None and not through_mlps:
            frozen.append(Place("mlps_output", layer.index))
    return frozen
