"""The residual stream at chosen positions of chosen prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.batching import run_batches
from nnterp_mcp.engine.forward import NOTHING, Capture, Plan, forward
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


@dataclass(frozen=True)
class BatchStates:
    """What one batch gave.

    Attributes:
        keys: Prompt index and position of each reading.
        states: The residual streams, on the model's device.
        prompts_done: Prompts that have run so far.
    """

    keys: list[tuple[int, int]]
    states: Float[Tensor, "reading layer hidden"]
    prompts_done: int


def iterate_states(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
) -> Iterator[BatchStates]:
    """Reads the residual stream after layers batch by batch, running no further than the last of them.

    Args:
        model: The model.
        prompts: The prompts.
        positions: For each prompt, the positions to read in the unpadded prompt.
        layers: The layers to read, in ascending order.
        plan: The operations in force, planned for these prompts.
        batch_tokens: Padded tokens in a forward pass, at most.

    Yields:
        The states of each batch; prompts of similar length come together, so not in their order.
    """
    asked = {prompt.index: at for prompt, at in zip(prompts, positions, strict=True)}

    def places(batch: Batch) -> list[tuple[int, int]]:
        return [(row, at) for row, prompt in enumerate(batch.prompts) for at in asked[prompt.index]]

    def read(batch: Batch) -> Float[Tensor, "reading layer hidden"]:
        found = forward(model, batch, plan, capture_stream(batch, places(batch), layers)).values
        return torch.stack([states.to(model.device) for states in found], dim=1)

    done = 0
    for batch, states in run_batches(model, prompts, batch_tokens, read):
        done += len(batch.prompts)
        yield BatchStates([(batch.prompts[row].index, at) for row, at in places(batch)], states, done)


def read_states(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda prompts_done: None,
) -> Float[Tensor, "reading layer hidden"]:
    """All that `iterate_states` reads, in the order of the prompts, then of the positions.

    Args:
        model: The model.
        prompts: The prompts.
        positions: For each prompt, the positions to read in the unpadded prompt.
        layers: The layers to read, in ascending order.
        plan: The operations in force, planned for these prompts.
        batch_tokens: Padded tokens in a forward pass, at most.
        on_batch: Called after each batch with the number of prompts done; what it raises ends the reading.

    Returns:
        The states on the model's device.
    """
    parts: list[Tensor] = []
    keys: list[tuple[int, int]] = []
    for found in iterate_states(model, prompts, positions, layers, plan=plan, batch_tokens=batch_tokens):
        parts.append(found.states)
        keys += found.keys
        on_batch(found.prompts_done)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return torch.cat(parts)[order]


def capture_stream(batch: Batch, wanted: Sequence[tuple[int, int]], layers: Sequence[int]) -> list[Capture]:
    """Captures of the residual stream after layers.

    Args:
        batch: The prompts.
        wanted: Row and position in the unpadded prompt of each reading.
        layers: The layers.
    """
    rows, columns = torch.tensor([(row, batch.padding[row] + at) for row, at in wanted]).T
    options = {"rows": rows, "columns": columns}
    return [Capture(Place("layers_output", layer), take_rows, options) for layer in layers]
