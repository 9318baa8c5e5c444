"""Steering: adding a vector to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from nnsight import TransformersModel
from torch import Tensor

from nnterp_mcp.model import trace_edits as edits
from nnterp_mcp.model.loading.adoption import named
from nnterp_mcp.model.trace_edits import name_columns


def steer(
    nn_model: TransformersModel,
    layers: int | list[int],
    steering_vector: Float[Tensor, " hidden"],
    factor: float = 1,
    positions: int | Sequence[int] | Tensor | None = None,
    token_positions: int | Sequence[int] | Tensor | None = None,
    batch_index: int | Sequence[int] | Tensor | None = None,
) -> None:
    """Adds `factor * steering_vector` to the residual stream after layers, inside a trace.

    Args:
        nn_model: The model whose trace is running.
        layers: One layer or several.
        steering_vector: What to add.
        factor: How much of it.
        positions: Deprecated, as in nnterp: the former name of `token_positions`.
        token_positions: Tokens of the padded batch to steer; all by default.
        batch_index: Rows to steer; all by default.

    Raises:
        InvalidRequest: A layer does not exist, or both names of the positions came.

    Source: Turner et al., "Steering Language Models With Activation Engineering" (2023).
    """
    columns = name_columns(positions, token_positions)
    edits.add_to_stream(named(nn_model), layers, steering_vector, factor, columns, batch_index)
