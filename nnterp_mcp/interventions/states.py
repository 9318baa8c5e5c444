"""The residual stream at chosen positions of chosen prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.interventions.engine import NOTHING, Plan, Read, forward
from nnterp_mcp.interventions.places import Place
from nnterp_mcp.model.prompts import Batch, EncodedPrompt, fill_batches
from nnterp_mcp.model.standardized import StandardizedTransformer


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
    """Reads the residual stream after layers, running no further than the last of them.

    Args:
        model: The model.
        prompts: The prompts.
        positions: For each prompt, the positions to read in the unpadded prompt.
        layers: The layers to read, in ascending order.
        plan: The operations in force, planned for these prompts.
        batch_tokens: Padded tokens in a forward pass, at most.
        on_batch: Called after each batch with the number of prompts done; what it raises ends the reading.

    Returns:
        The states on the model's device, in the order of the prompts, then of the positions.
    """
    asked = {prompt.index: at for prompt, at in zip(prompts, positions, strict=True)}
    parts: list[Tensor] = []
    keys: list[tuple[int, int]] = []
    done = 0
    for batch in fill_batches(prompts, batch_tokens, model.pad_id, model.device, pad=model.can("batch")):
        wanted = [(row, at) for row, prompt in enumerate(batch.prompts) for at in asked[prompt.index]]
        keys += [(batch.prompts[row].index, at) for row, at in wanted]
        parts.append(_read(model, batch, wanted, layers, plan))
        done += len(batch.prompts)
        on_batch(done)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return torch.cat(parts)[order]


def _read(
    model: StandardizedTransformer,
    batch: Batch,
    wanted: Sequence[tuple[int, int]],
    layers: Sequence[int],
    plan: Plan,
) -> Float[Tensor, "reading layer hidden"]:
    rows = torch.tensor([row for row, _ in wanted], device=model.device)
    columns = torch.tensor([batch.padding[row] + at for row, at in wanted], device=rows.device)
    reads = [
        Read(Place("layers_output", layer), lambda state: state[rows, columns].to(rows.device)) for layer in layers
    ]
    return torch.stack(forward(model, batch, plan, reads).reads, dim=1)
