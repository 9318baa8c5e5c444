"""States of clean runs, which patches and means put in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Read, forward
from nnterp_mcp.engine.hook_points import Place, by_position
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


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
        model: The model.
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

    def read(batch: Batch, numbers: Sequence[int]) -> list[Gathered]:
        asked = [(row, request) for row, number in enumerate(numbers) for request in groups[number]]
        places = {request.place for _, request in asked}
        return forward(model, batch, reads=[Read(place, _taker(place, batch, asked)) for place in places]).reads

    for _, found in work.run_batches(model, read):
        for states in found:
            known |= {request.key: taken for request, taken in states.items()}
    return {request: known[request.key] for request in requests}


def _taker(place: Place, batch: Batch, asked: Sequence[tuple[int, Request]]) -> Callable[[Tensor], Gathered]:
    def take(value: Tensor) -> Gathered:
        states = by_position(value, place.site)
        return {request: _take(states, batch, row, request) for row, request in asked if request.place == place}

    return take


def _take(states: Tensor, batch: Batch, row: int, request: Request) -> Tensor:
    before = batch.padding[row]
    taken = states[row, torch.tensor([before + at for at in request.positions], device=states.device)]
    if request.place.site == "attention_probabilities":
        taken = taken[..., before:].clone()
    return taken.float().sum(0) if request.summed else taken
