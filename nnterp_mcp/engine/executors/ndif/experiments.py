"""Which experiments are sent to NDIF, and what is refused of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.backend import pass_data, replayed, run_served_pass
from nnterp_mcp.engine.executors.ndif.branches import observe_served, run_served_branches, try_served_branches
from nnterp_mcp.engine.executors.ndif.generation import generate_served
from nnterp_mcp.engine.executors.ndif.kernels import read_likeliest, read_rows
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.refusals import not_offered
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.planning.vectors import matrix_of
from nnterp_mcp.errors import Internal


def read_served_token_rows(model: ServedTransformer, of: str, ids: Sequence[int]) -> Tensor:
    """`vectors.read_token_rows` on a served model; a row that came once is remembered.

    Raises:
        Unsupported: The service lets no weights be read.
    """
    matrix = matrix_of(model, of)
    path = next(path for path, module in model.module.named_modules() if module is matrix)
    missing = [number for number in dict.fromkeys(ids) if (path, number) not in model.token_rows]
    if missing:
        options = {"path": path, "ids": missing}
        inputs = {"input_ids": torch.ones(1, 1, dtype=torch.long), "use_cache": False}
        try:
            (found,) = run_passes(
                model.connection, [pass_data(model, inputs, []) | {"read": read_rows, "options": options}]
            )
        except Internal as error:
            raise not_offered(model.name, "weights, of which a difference of tokens is made") from error
        model.token_rows |= zip([(path, number) for number in missing], found["rows"], strict=True)
    return torch.stack([model.token_rows[path, number] for number in ids])


def likeliest_served_tokens(model: ServedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """`lens.likeliest_tokens` on a served model."""
    found = run_passes(model.connection, [replayed(model, len(states), states, read_likeliest, {})])
    return found[-1]["tokens"].tolist()


EXPERIMENTS: Mapping[str, Callable[..., Any]] = {
    "generate": generate_served,
    "likeliest_tokens": likeliest_served_tokens,
    "observe": observe_served,
    "read_token_rows": read_served_token_rows,
    "run_pass": run_served_pass,
    "run_branches": run_served_branches,
    "try_branches": try_served_branches,
}
"""By the name of the local function: what a served model runs instead."""
