"""States of clean runs, which patches and means put in the place of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.dominance import find_dominant
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.formatting import dominating, elided, quoted
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.remarks import remark


@dataclass(frozen=True, eq=False)
class Request:
    """States of one prompt that something else needs.

    Attributes:
        prompt: The prompt.
        place: Where they are.
        positions: At which positions.
        summed: Whether only their sum is needed.
    """

    prompt: EncodedPrompt
    place: Place
    positions: Sequence[int]
    summed: bool = False

    @property
    def key(self) -> Key:
        """Equal in requests for the same states."""
        return tuple(self.prompt.ids), self.place, tuple(self.positions), self.summed


Key = tuple[tuple[int, ...], Place, tuple[int, ...], bool]
Known = dict[Key, Float[Tensor, "*position_and_head width"]]
"""States that were gathered already; at attention probabilities the width is the prompt's keys."""
Gathered = dict[Request, Float[Tensor, "*position_and_head width"]]
"""The states of each request."""


def gather(
    model: StandardizedTransformer,
    requests: Sequence[Request],
    batch_tokens: int,
    known: Known,
) -> Gathered:
    """Runs the prompts of all requests, each once and without interventions.

    Args:
        requests: What is needed.
        batch_tokens: Padded tokens in a forward pass, at most.
        known: States that need no run any more; those that are gathered are added.
    """
    needed: dict[tuple[int, ...], list[Request]] = {}
    for request in requests:
        if request.key not in known:
            needed.setdefault(tuple(request.prompt.ids), []).append(request)
    groups = list(needed.values())
    work = Workload([group[0].prompt for group in groups], batch_tokens=batch_tokens)

    def read(batch: Batch, numbers: Sequence[int]) -> Gathered:
        asked: dict[Place, list[tuple[int, Request]]] = {}
        for row, number in enumerate(numbers):
            for request in groups[number]:
                asked.setdefault(request.place, []).append((row, request))
        captures = [Capture(place, take_rows, _entries(batch, listed)) for place, listed in asked.items()]
        found: Gathered = {}
        for listed, states in zip(asked.values(), forward(model, batch, captures=captures).values, strict=True):
            parts = states.split([len(request.positions) for _, request in listed])
            for (row, request), part in zip(listed, parts, strict=True):
                found[request] = _part(model, batch, row, request, part)
        return found

    for _, found in work.run_batches(model, read):
        known |= {request.key: taken for request, taken in found.items()}
    return {request: known[request.key] for request in requests}


def _entries(batch: Batch, asked: Sequence[tuple[int, Request]]) -> dict[str, Tensor]:
    entries = [(row, batch.padding[row] + at) for row, request in asked for at in request.positions]
    rows, columns = torch.tensor(entries, dtype=torch.long).reshape(-1, 2).T
    return {"rows": rows, "columns": columns}


def _part(model: StandardizedTransformer, batch: Batch, row: int, request: Request, states: Tensor) -> Tensor:
    if request.place.site == "attention_probabilities":
        states = states[..., batch.padding[row] :].clone()
    if not request.summed:
        return states
    _warn_of_dominance(model, request, states.float().flatten(1).norm(dim=-1))
    return states.float().sum(0)


def _warn_of_dominance(model: StandardizedTransformer, request: Request, norms: Float[Tensor, " position"]) -> None:
    found = find_dominant(norms[:, None])
    if found is not None:
        at = request.positions[found.state]
        token = token_text(model.tokenizer, request.prompt.ids[at])
        where = f"position {at} of {quoted(elided(request.prompt.text))}"
        remark(dominating(token, where, request.place.layer, found.ratio))
