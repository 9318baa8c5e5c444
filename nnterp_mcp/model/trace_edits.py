"""Edits of the residual stream that have names of their own: leaving layers out, adding a vector."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.accessors import Named, StateList, layer_index

Indices = int | Sequence[int] | Tensor
"""One index, several, or a mask."""


def leave_out_layers(
    model: Named,
    first: SupportsIndex,
    last: SupportsIndex,
    skip_with: Float[Tensor, "batch position hidden"] | tuple[Any, ...] | None = None,
) -> None:
    """Leave out layers, inside a trace: the residual stream goes past them as it is.

    Args:
        first: The first layer that does not run.
        last: The last one.
        skip_with: What they give instead; by default what went into the first.

    Raises:
        InvalidRequest: A layer does not exist, or they are in the wrong order.
    """
    start, end = (layer_index(layer, model.anatomy, model.name) for layer in (first, last))
    if start > end:
        raise InvalidRequest(f"layers {start} to {end} cannot be skipped: the first comes after the last.")
    states = StateList(model, "block", "input")[start] if skip_with is None else skip_with
    if not isinstance(states, Tensor):
        states = next(item for item in states if isinstance(item, Tensor))
    for layer in model.anatomy.layers[start : end + 1]:
        if layer.runs and layer.block.carries:
            # It has to run: later layers need its other outputs.
            StateList(model, "block", "output")[layer.index] = states
        elif layer.runs:
            model.envoy(layer.block).skip(layer.block.make_output(states))


def add_to_stream(
    model: Named,
    layers: int | Iterable[int],
    vector: Float[Tensor, " hidden"],
    factor: float = 1,
    positions: Indices | None = None,
    rows: Indices | None = None,
) -> None:
    """Add a vector to the residual stream after layers, inside a trace.

    Args:
        layers: The layers, in any order.
        vector: What is added; moved to the states' device and dtype.
        factor: What it is multiplied by first.
        positions: Columns of the batch, padding counted; all by default.
        rows: Rows of the batch; all by default.

    Raises:
        InvalidRequest: A layer does not exist, or the vector's width is not the model's.
    """
    hidden_size = model.anatomy.hidden_size
    if vector.shape[-1] != hidden_size:
        raise InvalidRequest(
            f"a steering vector of width {vector.shape[-1]} does not fit: {model.name} has a hidden size of "
            f"{hidden_size}."
        )
    output = StateList(model, "block", "output")
    chosen = [layers] if isinstance(layers, int) else list(layers)
    for layer in sorted({layer_index(layer, model.anatomy, model.name) for layer in chosen}):
        states = output[layer].clone()
        where = _select(states, rows, positions)
        states[where] = states[where] + factor * vector.to(states)
        output[layer] = states


def name_columns(positions: Indices | None, token_positions: Indices | None) -> Indices | None:
    """The columns to steer, of nnterp's former and present parameter for them.

    Args:
        positions: Under the former name, which warns.
        token_positions: Under the present one.

    Raises:
        InvalidRequest: Both came.
    """
    if positions is None:
        return token_positions
    if token_positions is not None:
        raise InvalidRequest(
            "Cannot specify both positions and token_positions, which are two names of one thing.",
            "Give token_positions alone: positions is deprecated.",
        )
    warnings.warn("positions is deprecated: use token_positions instead.", DeprecationWarning, stacklevel=3)
    return positions


def _select(states: Tensor, rows: Indices | None, positions: Indices | None) -> Any:
    if rows is None and positions is None:
        return ...
    if rows is None:
        return slice(None), _tensor(positions, states)
    if positions is None:
        return _tensor(rows, states)
    return _tensor(rows, states), _tensor(positions, states)


def _tensor(indices: Indices | None, like: Tensor) -> Any:
    return indices if isinstance(indices, int) else torch.as_tensor(indices, device=like.device)
