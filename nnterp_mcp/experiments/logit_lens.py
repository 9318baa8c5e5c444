"""The logit lens: what each layer would predict if the model ended there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.readouts.next_token import (
    Categories,
    Readout,
    ReadoutRows,
    normalize,
    read_log_probs,
    rows_at_once,
)
from nnterp_mcp.engine.readouts.reductions import divergence
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.activations import take_states
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch

_LOGITS_AT_ONCE = 1 << 23
"""Logits held at one time: rows are projected in chunks of this many over the vocabulary."""


@dataclass(frozen=True)
class LensReadings:
    """What the lens reads at some positions of some prompts, on the CPU.

    Attributes:
        prompts: The prompt of each reading.
        positions: Its position in the unpadded prompt.
        layers: The layers that were read, in ascending order.
        readout: Top tokens, entropies and targets, by reading and layer.
        kl: KL(last layer ‖ this layer), in nats.
    """

    prompts: list[int]
    positions: list[int]
    layers: list[int]
    readout: Readout
    kl: Float[Tensor, "reading layer"]


@runs_elsewhere
def read_lens(
    model: StandardizedTransformer,
    work: Workload,
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    inverse: bool = False,
) -> LensReadings:
    """Reads the residual stream after each layer through the model's own final norm, head and logit transform.

    Measures what the last layers would do with a state as it is, so it misleads where early layers write in another
    basis than the last one: a flat or odd distribution there is no proof that the information is absent. At the
    last layer it is the model's output, exactly; with operations in the workload's plan, the edited model's.

    Everything is reduced beside the model: only the numbers in the readings leave the device.

    Args:
        model: The model.
        work: The prompts.
        positions: For each prompt, the positions to read.
        layers: The layers to read, in ascending order.
        top_k: How many of the likeliest tokens to keep.
        categories: For each prompt, the token ids of each category whose probability and rank to follow.
        inverse: Read the distribution of the negated logits: its top tokens are those that a layer speaks against most.

    Returns:
        The readings in the order of the prompts and their positions.

    Raises:
        Unsupported: The model's lens is not exact.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    model.require("lens")
    last = model.num_layers - 1
    read = [*layers] if layers[-1] == last else [*layers, last]
    first = [0, *accumulate(map(len, positions))]
    keys = [(number, at) for number, here in enumerate(positions) for at in here]
    owners = torch.tensor([number for number, _ in keys], device=model.device)
    followed = Categories.of(categories or [[]] * len(positions), model.device)
    count, total = len(layers), len(keys)
    readouts, divergences = ReadoutRows(total * count), torch.empty(total * count, device=model.device)

    def take(batch: Batch, numbers: Sequence[int]) -> None:
        states = take_states(model, batch, [positions[number] for number in numbers], read, work.plan)
        readings = [reading for number in numbers for reading in range(first[number], first[number + 1])]
        size = _readings_at_once(model, len(read), states.device)
        for part, at in zip(states.split(size), torch.tensor(readings, device=model.device).split(size), strict=True):
            for rows, readout, kl in _reduce(model, part, at, top_k, followed[owners[at]], count, inverse):
                readouts.put(rows, readout)
                divergences[rows] = kl

    for _ in work.run_batches(model, take):
        pass
    return LensReadings(
        prompts=[work.prompts[number].index for number, _ in keys],
        positions=[at for _, at in keys],
        layers=list(layers),
        readout=readouts.read((total, count)),
        kl=divergences.reshape(total, count).cpu(),
    )


def _readings_at_once(model: StandardizedTransformer, layers: int, device: torch.device) -> int:
    """How many readings have their logits formed together."""
    width = layers * model.vocab_size
    return max(_LOGITS_AT_ONCE // width, rows_at_once(width, device))


@torch.inference_mode()
def _reduce(
    model: StandardizedTransformer,
    states: Float[Tensor, "reading layer hidden"],
    readings: Int[Tensor, " reading"],
    top_k: int,
    followed: Categories,
    count: int,
    inverse: bool,
) -> Iterator[tuple[Int[Tensor, " row"], Readout, Float[Tensor, " row"]]]:
    """Reduces the first `count` layers of readings; the last layer is what they are compared with.

    Yields:
        Rows (reading × count + layer), with their readouts and divergences.
    """
    logits = model.project_on_vocab(states)
    logits = -logits if inverse else logits
    size = rows_at_once(model.vocab_size, logits.device)
    at_once = max(1, size // states.shape[1])
    rows = readings[:, None] * count + torch.arange(count, device=readings.device)
    numbers = torch.arange(len(states), device=readings.device)[:, None].expand(rows.shape)
    for part, *places in zip(*(whole.split(at_once) for whole in (logits, rows, numbers)), strict=True):
        last = normalize(part[:, -1:])
        layers = (whole.split(min(size, count), dim=1) for whole in (part[:, :count], *places))
        for some, at, of_reading in zip(*layers, strict=True):
            log_probs = normalize(some)
            readout = read_log_probs(log_probs.flatten(0, 1), top_k, followed[of_reading.flatten()])
            yield at.flatten(), readout, divergence(last, log_probs).flatten()


@runs_elsewhere
@torch.inference_mode()
def likeliest_tokens(model: StandardizedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """The token that comes most probably of each state after the last layer."""
    return [int(token) for part in states.split(64) for token in model.project_on_vocab(part).argmax(-1)]
