"""Directions in the residual stream, made from prompts, from tokens, at random or from numbers.

Residual streams are averaged over the chosen positions of each prompt on the device; every method is a function of
these averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.vectors import resolve_vector
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.activations import collect, index_rows
from nnterp_mcp.experiments.statistics.separability import Fit, Separation, separate
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.operations import TokenDifference
from nnterp_mcp.request.positions import PositionSpec


@dataclass(frozen=True)
class MeanStates:
    """Residual streams of prompts, averaged over positions.

    Attributes:
        layers: The layers after which it was read.
        means: Each prompt's state, averaged over its positions.
        positions: The positions of each prompt over which it was averaged; None stands for several at once.
        norms: The norms of the states at these positions, by prompt.
    """

    layers: list[int]
    means: Float[Tensor, "prompt layer hidden"]
    positions: list[Sequence[int | None]]
    norms: list[Float[Tensor, "position layer"]]

    @property
    def lengths(self) -> Float[Tensor, "prompt layer"]:
        """The mean norm of each prompt's states at its positions."""
        return torch.stack([norms.mean(0) for norms in self.norms])


@dataclass(frozen=True)
class Directions:
    """One direction for each of some layers, or one for any layer.

    Attributes:
        layers: The layers; empty where one direction serves at any layer.
        vectors: The directions, in float32.
        stream: The mean length of the states that they were made from; None without any.
        separation: How well they tell the two sets apart that they were made from; None without two sets.
        explained: The share of the pairs' squared differences that lies along each; None but for a principal component.
    """

    layers: list[int]
    vectors: Float[Tensor, "direction hidden"]
    stream: Float[Tensor, " direction"] | None = None
    separation: Separation | None = None
    explained: Float[Tensor, " direction"] | None = None

    @property
    def norms(self) -> Float[Tensor, " direction"]:
        """The length of each."""
        return self.vectors.norm(dim=-1)

    def scaled(self, norm: float) -> Directions:
        """The same directions, all of one length."""
        return replace(self, vectors=self.vectors * (norm / self.norms)[:, None])


def average_states(
    model: StandardizedTransformer, work: Workload, layers: Sequence[int], positions: Sequence[PositionSpec] = ("last",)
) -> MeanStates:
    """Reads the residual stream after layers, averaged over positions of each prompt.

    Args:
        work: The prompts.
        layers: The layers, in ascending order.
        positions: The positions to average over, in each prompt; `all` leaves out the first token, which is often an
            attention sink.

    Raises:
        InvalidRequest: A position does not exist in a prompt, or a state is not finite.
    """
    rows = index_rows(work.prompts, positions, "mean")
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for part in collect(model, work, rows, [Place("layers_output", layer) for layer in layers]):
        found |= dict(zip(part.rows, zip(part.states, part.norms, strict=True), strict=True))
    means, norms = zip(*(found[row] for row in range(len(rows))), strict=True)
    return MeanStates(list(layers), torch.stack(means), [row.positions for row in rows], list(norms))


def mean_difference(positive: MeanStates, negative: MeanStates) -> Directions:
    """The mean state of one set of prompts minus that of another.

    It holds everything in which the sets differ on average, their wording and length as well as what they were meant
    to differ in, so the sets should be matched pair by pair.

    Args:
        positive: The set towards which the direction points.
        negative: The set away from which it points, read after the same layers.

    Raises:
        InvalidRequest: The two means are equal after some layer.

    Source: Marks and Tegmark, "The Geometry of Truth" (2023); Rimsky et al., "Steering Llama 2 via Contrastive
    Activation Addition" (2023).
    """
    return _contrast(positive, negative, _difference)


def principal_component(positive: MeanStates, negative: MeanStates) -> Directions:
    """The first principal component of the differences within pairs, uncentred.

    It is the direction along which the differences have the greatest mean square; its sign is that of their mean, and
    its length is the mean of the differences along it, so that a factor means as much as for `mean_difference`. Where
    a few pairs differ far more than the others, it is theirs.

    Args:
        positive: The first prompt of each pair.
        negative: The second one, read after the same layers.

    Raises:
        InvalidRequest: There are not as many of either, or the differences are zero after some layer.

    Source: Zou et al., "Representation Engineering" (2023).
    """
    if len(positive.means) != len(negative.means):
        raise InvalidRequest(
            f"{len(positive.means)} positive and {len(negative.means)} negative prompts are no pairs.",
            "Give as many of either, or use mean_difference.",
        )
    found = _contrast(positive, negative, _component)
    differences = positive.means - negative.means
    along = (differences * torch.nn.functional.normalize(found.vectors, dim=-1)).sum(-1)
    return replace(found, explained=along.square().sum(0) / differences.square().sum((0, -1)))


def activation(states: MeanStates) -> Directions:
    """The mean state of the prompts itself.

    Most of it is what all states share whatever the prompt, so adding it does not add only what is particular to these.

    Args:
        states: What to take, most often one prompt's.
    """
    return Directions(states.layers, states.means.mean(0), states.lengths.mean(0))


def token_difference(model: StandardizedTransformer, asked: TokenDifference) -> Directions:
    """The difference between rows of the embedding or of the unembedding, each averaged over a text's tokens.

    The embedding's basis is that of the first layers, the unembedding's that of the last (before the final norm's
    weights); in between neither need mean much.

    Args:
        asked: The two texts and the matrix; without a negative text the rows themselves.

    Raises:
        InvalidRequest: A text has no tokens, or the two have the same.
        Unsupported: The model has no such matrix.
    """
    vector = resolve_vector(model, asked, Place("layers_output", 0), None).float().cpu()
    if not bool(vector.any()):
        raise InvalidRequest(
            f"{asked.positive!r} and {asked.negative!r} have the same tokens, so there is no direction."
        )
    return Directions([], vector[None])


def random_direction(hidden_size: int, norm: float, seed: int) -> Directions:
    """A direction drawn evenly from all directions; equal seeds give equal directions on every machine.

    Args:
        hidden_size: Its width.
        norm: Its length.
    """
    drawn = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Directions([], (drawn * (norm / drawn.norm())).float())


def given_directions(numbers: Tensor, hidden_size: int, layers: Sequence[int], name: str) -> Directions:
    """Directions from numbers.

    Args:
        numbers: One direction, or one for each layer.
        hidden_size: The width that they must have.
        layers: The layers that the rows belong to; not needed for one direction, which serves at any layer.
        name: Where the numbers come from, for errors.

    Raises:
        InvalidRequest: Their shape is another one, or one of them is zero or not finite.
    """
    rows = numbers[None] if numbers.ndim == 1 else numbers
    if rows.ndim != 2 or rows.shape[1] != hidden_size:
        raise InvalidRequest(
            f"{name} has the shape {tuple(numbers.shape)}: give ({hidden_size},), or (layers, {hidden_size})."
        )
    if len(rows) > 1 and len(rows) != len(layers):
        raise InvalidRequest(
            f"{name} has {len(rows)} directions for {len(layers)} layers.", "Name as many layers as it has rows."
        )
    return Directions(list(layers) if len(rows) > 1 else [], _usable(rows.float(), list(layers), name))


def spread_over_layers(
    vectors: Float[Tensor, "direction *dimension hidden"], layers: Sequence[int], num_layers: int
) -> Float[Tensor, "*layer_and_dimension hidden"]:
    """Directions or subspaces as interventions look them up: one for any layer, or one for each layer of the model.

    Rows of layers without any hold no numbers (NaN).
    """
    if not layers:
        return vectors[0]
    rows = torch.full((num_layers, *vectors.shape[1:]), torch.nan)
    rows[list(layers)] = vectors
    return rows


def _contrast(positive: MeanStates, negative: MeanStates, fit: Fit) -> Directions:
    vectors = _usable(fit(positive.means, negative.means), positive.layers, "the difference of the two sets")
    return Directions(
        positive.layers,
        vectors,
        stream=torch.cat([positive.lengths, negative.lengths]).mean(0),
        separation=separate(positive.means, negative.means, fit),
    )


def _difference(
    positive: Float[Tensor, "prompt layer hidden"], negative: Float[Tensor, "other layer hidden"]
) -> Float[Tensor, "layer hidden"]:
    return positive.mean(0) - negative.mean(0)


def _component(
    positive: Float[Tensor, "pair layer hidden"], negative: Float[Tensor, "pair layer hidden"]
) -> Float[Tensor, "layer hidden"]:
    differences = (positive - negative).transpose(0, 1)
    # Between pairs and not between components: there are fewer pairs than the stream is wide.
    products = differences @ differences.transpose(1, 2)
    mixture = torch.linalg.eigh(products.double()).eigenvectors[..., -1:].to(differences)
    component = torch.nn.functional.normalize((differences * mixture).sum(1), dim=-1)
    along = (differences.mean(1) * component).sum(-1, keepdim=True)
    return component * along


def _usable(vectors: Float[Tensor, "direction hidden"], layers: Sequence[int], what: str) -> Tensor:
    bad = ~vectors.isfinite().all(-1) | (vectors == 0).all(-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        where = f" after layer {layers[row]}" if len(layers) == len(vectors) else ""
        raise InvalidRequest(f"{what} is zero or not finite{where}, so it has no direction.")
    return vectors
