"""The vectors that operations name: handles, directions between tokens, plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.edits import require_width
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.hook_points import Place, known_width
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokens import inner_ids
from nnterp_mcp.request.operations import TokenDifference, Vector, label_of

Vectors = Callable[[str], Float[Tensor, "*layer_and_width"]]
"""Finds a vector by its name: one for any layer, or one for each, without numbers (NaN) where there is none.

A named subspace has rows for its dimensions at each layer.
"""


def resolve_vector(
    model: StandardizedTransformer, asked: Vector, place: Place, vectors: Vectors | None
) -> Float[Tensor, " width"]:
    """The vector that an operation adds or removes at a place.

    Args:
        asked: What the request says.
        place: Where it is used.
        vectors: Finds named vectors.

    Raises:
        InvalidRequest: It does not fit the states there, or is a subspace, or there is none of that name.
        Unsupported: The model has no embeddings of that kind.
    """
    rows = resolve_subspace(model, asked, place, vectors)
    if len(rows) > 1:
        raise InvalidRequest(
            f"{label_of(asked)} is a subspace of {len(rows)} dimensions, and one direction is needed here.",
            "project_out, patch with along, and verify_claim take subspaces.",
        )
    return rows[0]


def resolve_subspace(
    model: StandardizedTransformer, asked: Vector, place: Place, vectors: Vectors | None
) -> Float[Tensor, "dimension width"]:
    """The directions of a named subspace at a place, orthonormal where there are several; else the vector alone.

    Args:
        asked: What the request says.
        place: Where it is used.
        vectors: Finds named vectors.

    Raises:
        InvalidRequest: It does not fit the states there, or there is none of that name.
        Unsupported: The model has no embeddings of that kind.
    """
    vector = _find(model, asked, vectors)
    if vector.ndim > 1:
        if place.layer is None or vector.shape[0] != model.num_layers:
            raise InvalidRequest(
                f"{label_of(asked)} has a row for each of {vector.shape[0]} layers, and does not fit the {place}."
            )
        having = [str(layer) for layer, row in enumerate(vector) if not bool(row.isnan().any())]
        if str(place.layer) not in having:
            raise InvalidRequest(
                f"{label_of(asked)} has no direction for layer {place.layer}: it has one for layers "
                f"{', '.join(having)}."
            )
        vector = vector[place.layer]
    if (width := known_width(model, place)) is not None:
        require_width(vector, width, label_of(asked), place)
    return vector if vector.ndim == 2 else vector[None]


def resolve_projection(
    model: StandardizedTransformer, asked: Vector, place: Place, vectors: Vectors | None
) -> Float[Tensor, "*dimension width"]:
    """A vector along which states are changed, or the rows of a subspace in which they are.

    Raises:
        InvalidRequest: It is zero, or as for `resolve_subspace`.
    """
    rows = resolve_subspace(model, asked, place, vectors)
    if not bool(rows.any()):
        raise InvalidRequest(f"{label_of(asked)} is zero, so it has no direction.")
    return rows if len(rows) > 1 else rows[0]


def _find(model: StandardizedTransformer, asked: Vector, vectors: Vectors | None) -> Tensor:
    if isinstance(asked, TokenDifference):
        return _between_tokens(model, asked)
    if isinstance(asked, tuple):
        return torch.tensor(asked)
    if vectors is None:
        raise InvalidRequest(
            f"the vector {asked!r} does not exist: there are no named vectors here.",
            "Give a token difference or the numbers.",
        )
    return vectors(asked)


def _between_tokens(model: StandardizedTransformer, asked: TokenDifference) -> Tensor:
    positive = _mean_row(model, asked.of, asked.positive)
    return positive if asked.negative is None else positive - _mean_row(model, asked.of, asked.negative)


def _mean_row(model: StandardizedTransformer, of: str, text: str) -> Tensor:
    ids = inner_ids(model.tokenizer, text)
    if not ids:
        raise InvalidRequest(f"{text!r} has no tokens for {model.name}.", "Give some visible text.")
    return read_token_rows(model, of, ids).mean(0)


@executed_remotely
def read_token_rows(model: StandardizedTransformer, of: str, ids: Sequence[int]) -> Float[Tensor, "token width"]:
    """The rows of tokens in the matrix of `embeddings` or `unembeddings`.

    Raises:
        Unsupported: The model has no such matrix.
    """
    weight = getattr(matrix_of(model, of), "weight", None)
    assert isinstance(weight, Tensor)
    return weight[list(ids)].detach().float()


def matrix_of(model: StandardizedTransformer, of: str) -> Any:
    """The module whose matrix has a row for each token.

    Raises:
        Unsupported: The model has none.
    """
    module: Any = model.module
    owner = module.get_input_embeddings() if of == "embeddings" else module.get_output_embeddings()
    weight = getattr(owner, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise Unsupported(f"{model.name} has no matrix of {of}, so no difference between their rows.")
    return owner
