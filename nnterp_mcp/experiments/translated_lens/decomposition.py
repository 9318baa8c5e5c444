"""Sparse decompositions of states into the directions that a lens reads as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, unembedding
from nnterp_mcp.model.standardized import StandardizedTransformer

_AT_ONCE = 1 << 23
"""Numbers of a part of the vocabulary's directions, or of their projections, at most."""


@dataclass(frozen=True)
class TokenDirections:
    """The direction of every token of the vocabulary at one layer, never all in memory together.

    Attributes:
        head: The unembedding.
        matrix: What a lens multiplies states by at the layer; None for the plain lens. Token t has the direction
            matrixᵀ head[t].
        norms: The norm of each direction.
    """

    head: Float[Tensor, "vocabulary output"]
    matrix: Float[Tensor, "output hidden"] | None
    norms: Float[Tensor, " vocabulary"]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: StandardizedTransformer, lens: LensTranslation | None = None, layer: int = 0) -> TokenDirections:
        """The directions by which a lens reads tokens at a layer; without a lens the rows of the unembedding.

        Raises:
            InvalidRequest: The lens is of another model, or lacks the layer; or the head has no matrix.
            Unsupported: Another machine serves the model.
        """
        if model.remote_calls:
            raise Unsupported(f"{model.name} is served remotely, and its unembedding is not on this machine.")
        if lens is not None:
            lens.require(model, [layer])
        head = unembedding(model)
        matrix = None if lens is None or layer not in lens.matrices else lens.matrices[layer].to(head.device)
        norms = [_pull(part, matrix).norm(dim=-1) for _, part in _parts(head, head.shape[1])]
        return cls(head, matrix, torch.cat(norms))

    def rows(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token hidden"]:
        """The directions of some tokens."""
        return _pull(self.head[tokens], self.matrix)

    def most_aligned(
        self, states: Float[Tensor, "state hidden"], without: Int[Tensor, "state token"]
    ) -> tuple[Float[Tensor, " state"], Int[Tensor, " state"]]:
        """The largest projection of each state on a token's unit direction, and the token.

        Args:
            states: The states.
            without: For each state, tokens that are left out.
        """
        moved = states if self.matrix is None else states @ self.matrix.T
        best = moved.new_full((len(states),), -torch.inf)
        token = torch.zeros_like(best, dtype=torch.long)
        for first, part in _parts(self.head, len(states)):
            check_cancelled()
            size = len(part)
            found = moved @ part.float().T / self.norms[first : first + size].clamp_min(1e-12)
            rows, columns = ((without >= first) & (without < first + size)).nonzero(as_tuple=True)
            found[rows, without[rows, columns] - first] = -torch.inf
            highest, at = found.max(dim=-1)
            token = torch.where(highest > best, first + at, token)
            best = torch.maximum(best, highest)
        return best, token


def _parts(head: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Parts of the vocabulary, each with its first token, so that `width` numbers a token fit in memory."""
    size = max(1, _AT_ONCE // max(width, head.shape[1]))
    return ((first, head[first : first + size]) for first in range(0, len(head), size))


def _pull(rows: Tensor, matrix: Tensor | None) -> Tensor:
    return rows.float() if matrix is None else rows.float() @ matrix


@dataclass(frozen=True)
class Decomposition:
    """States as sums of token directions with weights of at least 0; on the CPU.

    Attributes:
        tokens: The tokens of each state in the order in which they were chosen; -1 where no direction was left that
            points the state's way.
        weights: The length of each token's part of the sum, as a share of the state's norm; 0 for a token that later
            ones made superfluous.
        explained: The share of the state's squared norm that the sum of the first tokens explains, by their number.
    """

    tokens: Int[Tensor, "state direction"]
    weights: Float[Tensor, "state direction"]
    explained: Float[Tensor, "state direction"]


@torch.inference_mode()
def decompose_states(states: Float[Tensor, "state hidden"], directions: TokenDirections, count: int) -> Decomposition:
    """Decomposes states into few token directions by nonnegative orthogonal matching pursuit.

    Each step adds the token whose unit direction has the largest projection on what is left of a state, and then fits
    the weights of all its tokens again, by least squares with weights of at least 0. That is greedy: another set of as
    many directions may explain more. With a whole vocabulary to choose from, some directions fit any state: compare
    the share that is explained with that of `rotate_at_random`, of other layers' maps and of the plain unembedding.

    Args:
        states: Residual streams after the layer of the directions.
        directions: The token directions.
        count: The number of directions.

    Raises:
        InvalidRequest: The states are of another width.

    Source: Pati et al., "Orthogonal matching pursuit" (1993); Bruckstein et al., "On the uniqueness of nonnegative
    sparse solutions" (2008).
    """
    width = directions.head.shape[1]
    if states.shape[-1] != width:
        raise InvalidRequest(f"states of width {states.shape[-1]} have no parts along directions of width {width}.")
    states = states.float().to(directions.head.device)
    tokens = torch.full((len(states), count), -1, device=states.device)
    weights, explained = torch.zeros(len(states), count), torch.zeros(len(states), count)
    whole, left = states.cpu().double(), states
    for step in range(count):
        best, found = directions.most_aligned(left, tokens[:, :step])
        tokens[:, step] = torch.where(best > 0, found, -1)
        rest = torch.empty_like(whole)
        for at, state in enumerate(whole):
            chosen = tokens[at, : step + 1]
            rest[at], weights[at, : step + 1] = _fit(state, directions, chosen)
        explained[:, step] = 1 - (rest.square().sum(-1) / whole.square().sum(-1).clamp_min(1e-30))
        left = rest.to(states)
    return Decomposition(tokens.cpu(), weights, explained)


def _fit(state: Tensor, directions: TokenDirections, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The rest of a state without the chosen directions, and their weights."""
    real = (chosen >= 0).cpu()
    units = torch.nn.functional.normalize(directions.rows(chosen[chosen >= 0]).cpu().double(), dim=-1)
    lengths = torch.zeros(len(chosen), dtype=torch.float64)
    if len(units):
        lengths[real] = torch.from_numpy(nnls(units.T.numpy(), state.numpy())[0])
    return state - lengths[real] @ units, (lengths / state.norm().clamp_min(1e-30)).float()


def rotate_at_random(states: Float[Tensor, "state hidden"], seed: int = 0) -> Float[Tensor, "state hidden"]:
    """The states, rotated at random together: a control for what as many directions explain of any state.

    To rotate the states is to rotate all directions the other way: these keep their norms and the angles between them.
    """
    source = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(states.shape[-1], states.shape[-1], generator=source)).Q
    return states.float() @ rotation.to(states.device)
