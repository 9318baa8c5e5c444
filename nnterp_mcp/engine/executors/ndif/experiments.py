"""Which experiments are sent to NDIF, and what is refused of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.engine.executors.ndif.backend import pass_data, replayed, run_served_pass
from nnterp_mcp.engine.executors.ndif.branches import observe_served, run_served_branches, try_served_branches
from nnterp_mcp.engine.executors.ndif.generation import generate_served
from nnterp_mcp.engine.executors.ndif.kernels import call_module, read_head, read_rows, read_top
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.refusals import not_offered
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import steps_of
from nnterp_mcp.engine.forward import Capture
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.planning.vectors import matrix_of
from nnterp_mcp.engine.readouts.reductions import take_all
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import Internal
from nnterp_mcp.model.text.tokenization import EncodedPrompt


def read_served_token_rows(model: ServedTransformer, of: str, ids: Sequence[int]) -> Tensor:
    """`vectors.read_token_rows` on a served model; a row that came once is remembered.

    Raises:
        Unsupported: The service lets no weights be read.
    """
    matrix = matrix_of(model, of)
    path = next(path for path, module in model.module.named_modules() if module is matrix)
    missing = [number for number in dict.fromkeys(ids) if (path, number) not in model.token_rows]
    if missing:
        try:
            found = _call_there(model, read_rows, path=path, ids=missing)
        except Internal as error:
            raise not_offered(model.name, "weights, of which a difference of tokens is made") from error
        model.token_rows |= zip([(path, number) for number in missing], found["rows"], strict=True)
    return torch.stack([model.token_rows[path, number] for number in ids])


def served_top_tokens(model: ServedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """`lens.top_tokens` on a served model."""
    found = run_passes(model.connection, [replayed(model, len(states), states, read_top, {})])
    return found[-1]["tokens"].tolist()


class _ServedModule(nn.Module):
    """A module of a served model, called there.

    Attributes:
        like: The type in which it computes.
    """

    def __init__(self, model: ServedTransformer, path: str) -> None:
        super().__init__()
        self.like = nn.Parameter(torch.empty(0, dtype=model.dtype_served), requires_grad=False)
        self._call = partial(_call_there, model, call_module, path=path)

    def forward(self, states: Tensor) -> Tensor:
        """Its output."""
        return self._call(states=states.detach())["states"]


def find_served_final_modules(model: ServedTransformer, tokens: Sequence[int]) -> tuple[nn.Module | None, nn.Module]:
    """`logit_direction.find_final_modules` on a served model: the norm is called there, the rows of tokens are read.

    A row that came once is remembered.
    """
    norm, head = model.anatomy.ln_final, model.anatomy.lm_head
    assert head is not None
    missing = [token for token in dict.fromkeys(tokens) if token not in model.head_rows]
    if missing:
        found = _call_there(model, read_head, path=head.path, tokens=missing)
        model.head_rows |= zip(missing, zip(found["rows"], found["bias"], strict=True), strict=True)
    weights, biases = zip(*(model.head_rows[token] for token in tokens), strict=True)
    rows = nn.Linear(weights[0].shape[0], len(tokens))
    rows.load_state_dict({"weight": torch.stack(weights), "bias": torch.stack(biases)})
    return None if norm is None else _ServedModule(model, norm.path), rows


def _call_there(model: ServedTransformer, read: Callable[..., Data], **options: Any) -> Data:
    """Reads in a pass over one token, whose last state is the first capture."""
    window = Window([EncodedPrompt(0, "", [1], [])], [0], 0, 1)
    steps = steps_of(model, window, captures=[Capture(model.last_output, take_all)])
    inputs = {"input_ids": torch.ones(1, 1, dtype=torch.long), "use_cache": False}
    (found,) = run_passes(model.connection, [pass_data(model, inputs, steps) | {"read": read, "options": options}])
    return found


MOST_SENT = 1 << 18
"""Numbers that the passes of a call send whole: a megabyte."""

EXPERIMENTS: Mapping[str, Callable[..., Any]] = {
    "check_memory": lambda model, rows, columns, patterns: None,
    "find_final_modules": find_served_final_modules,
    "generate": generate_served,
    "top_tokens": served_top_tokens,
    "most_returned": lambda model: MOST_SENT,
    "observe": observe_served,
    "read_token_rows": read_served_token_rows,
    "run_pass": run_served_pass,
    "run_branches": run_served_branches,
    "try_branches": try_served_branches,
}
"""By the name of the local function: what a served model runs instead."""
