"""The residual stream at chosen positions of chosen prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.model.prompts import Batch, EncodedPrompt, fill_batches
from nnterp_mcp.model.standardized import StandardizedTransformer


def read_states(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda prompts_done: None,
) -> Float[Tensor, "reading layer hidden"]:
    """Reads the residual stream after layers, running no further than the last of them.

    Args:
        model: The model.
        prompts: The prompts.
        positions: For each prompt, the positions to read in the unpadded prompt.
        layers: The layers to read, in ascending order.
        batch_tokens: Padded tokens in a forward pass, at most.
        on_batch: Called after each batch with the number of prompts done; what it raises ends the reading.

    Returns:
        The states on the model's device, in the order of the prompts, then of the positions.
    """
    parts: list[Tensor] = []
    keys: list[tuple[int, int]] = []
    done = 0
    for batch in fill_batches(prompts, batch_tokens, model.pad_id, model.device, pad=model.can("batch")):
        wanted = [
            (row, order) for row, prompt in enumerate(batch.prompts) for order in range(len(positions[prompt.index]))
        ]
        keys += [(batch.prompts[row].index, order) for row, order in wanted]
        columns = [batch.padding[row] + positions[batch.prompts[row].index][order] for row, order in wanted]
        parts.append(_read(model, batch, [row for row, _ in wanted], columns, layers))
        done += len(batch.prompts)
        on_batch(done)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return torch.cat(parts)[order]


@torch.inference_mode()
def _read(
    model: StandardizedTransformer, batch: Batch, rows: list[int], columns: list[int], layers: Sequence[int]
) -> Float[Tensor, "reading layer hidden"]:
    device = model.device
    with model.trace(batch.inputs) as tracer:
        states = nnsight.save([model.layers_output[layer][rows, columns].to(device) for layer in layers])
        tracer.stop()
    return torch.stack(states, dim=1)
