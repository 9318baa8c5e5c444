"""Edits of features: the change of a state that a change of a dictionary's activations makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.edits import Rewritten
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.operations import EditFeatures
from nnterp_mcp.request.selectors import resolve_indices


@dataclass(frozen=True)
class FeatureBasis:
    """A dictionary as interventions see it.

    Attributes:
        name: Its name.
        latents: The number of its features.
        reads: The hook points whose states it reads, added up where there are several.
        writes: The hook point that it reconstructs.
        width: The width of the states there.
        encode: The features of states, from those of each hook point that it reads.
        write: Given changes of chosen features, their indices and the states that were read, the change of the
            reconstruction.
    """

    name: str
    latents: int
    reads: Sequence[Place]
    writes: Place
    width: int
    encode: Callable[[Sequence[Float[Tensor, "token width"]]], Float[Tensor, "token latent"]]
    write: Callable[[Float[Tensor, "token chosen"], Tensor, Sequence[Tensor]], Float[Tensor, "token output"]]


FindFeatures = Callable[[str, int | None], FeatureBasis]
"""Finds a loaded dictionary by its name and layer; without a layer the only one of that name."""


def find_bases(
    model: StandardizedTransformer, operation: EditFeatures, layers: Sequence[int | None], find: FindFeatures | None
) -> list[FeatureBasis]:
    """The dictionaries that an operation acts on, one for each layer.

    Raises:
        InvalidRequest: There is none, or it has no such feature.
        Unsupported: The model is served elsewhere, or lacks a hook point.
    """
    if model.remote_calls:
        raise Unsupported(f"features of {model.name}, which is served remotely, cannot be edited.")
    if find is None:
        raise InvalidRequest(f"there is no dictionary {operation.dictionary!r} here.")
    bases = [find(operation.dictionary, layer) for layer in layers]
    for basis in bases:
        resolve_indices(operation.features, basis.latents, "feature", operation.dictionary)
        for place in (*basis.reads, basis.writes):
            require_place(model, place)
    return bases


def rewritten(operation: EditFeatures, basis: FeatureBasis) -> Rewritten:
    """The change of the states at the hook point that a dictionary reconstructs."""
    chosen = torch.tensor(resolve_indices(operation.features, basis.latents, "feature", operation.dictionary))
    along = None if operation.random is None else _direction(basis.width, operation.random)
    earlier = [place for place in basis.reads if place != basis.writes]

    def rewrite(part: Tensor, reads: Sequence[Tensor]) -> Tensor:
        own = part.float().flatten(1)
        taken = dict(zip(earlier, (read.float().flatten(1) for read in reads), strict=True))
        states = [taken.get(place, own) for place in basis.reads]
        at = chosen.to(part.device)
        active = basis.encode(states)[:, at]
        change = _changed(operation, active) - active
        move = basis.write(change, at, states)
        if along is not None:
            move = move.norm(dim=-1, keepdim=True) * along.to(move)
        moved = own + move
        return torch.where((change != 0).any(-1, keepdim=True), moved, own).view_as(part).to(part)

    return Rewritten(rewrite, earlier)


def _direction(width: int, seed: int) -> Float[Tensor, " width"]:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def _changed(operation: EditFeatures, active: Float[Tensor, "token chosen"]) -> Float[Tensor, "token chosen"]:
    if operation.op == "add":
        return active + (operation.value or 0.0)
    if operation.op == "set":
        return torch.full_like(active, operation.value or 0.0)
    return active * (operation.factor or 0.0)
