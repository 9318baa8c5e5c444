"""The logit lens: what each layer would predict if the model ended there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.readouts.next_token import (
    Categories,
    Readout,
    ReadoutRows,
    normalize,
    read_log_probs,
    rows_at_once,
)
from nnterp_mcp.engine.readouts.reductions import divergence
from nnterp_mcp.experiments.residual_states import iterate_states
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt

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
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    inverse: bool = False,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda prompts_done: None,
) -> LensReadings:
    """Reads the residual stream after each layer through the model's own final norm, head and logit transform.

    Measures what the last layers would do with a state as it is, so it misleads where early layers write in another
    basis than the last one: a flat or odd distribution there is no proof that the information is absent. At the
    last layer it is the model's output, exactly.

    Everything is reduced beside the model: only the numbers in the readings leave the device.

    Args:
        model: The model.
        prompts: The prompts.
        positions: For each prompt, the positions to read.
        layers: The layers to read, in ascending order.
        top_k: How many of the likeliest tokens to keep.
        categories: For each prompt, the token ids of each category whose probability and rank to follow.
        inverse: Read the distribution of the negated logits: its top tokens are those that a layer speaks against most.
        plan: The operations in force, planned for these prompts; the last layer's output is then the edited model's.
        batch_tokens: Padded tokens in a forward pass, at most.
        on_batch: Called after each batch with the number of prompts done; what it raises ends the reading.

    Returns:
        The readings in the order of the prompts, then of the positions.

    Raises:
        Unsupported: The model's lens is not exact.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    model.require("lens")
    place = {prompt.index: row for row, prompt in enumerate(prompts)}
    followed = Categories.of(categories or [[]] * len(prompts), model.device)
    last = model.num_layers - 1
    read = [*layers] if layers[-1] == last else [*layers, last]
    count, total = len(layers), sum(map(len, positions))
    keys: list[tuple[int, int]] = []
    readouts, divergences = ReadoutRows(total * count), torch.empty(total * count, device=model.device)
    for found in iterate_states(model, prompts, positions, read, plan=plan, batch_tokens=batch_tokens):
        keys += found.keys
        rows = torch.tensor([place[prompt] for prompt, _ in found.keys], device=model.device)
        for part, chosen in zip(*_chunks(model, found.states, rows), strict=True):
            for readout, kl in _reduce(model, part, top_k, followed[chosen], count, inverse):
                divergences[readouts.add(readout)] = kl
        on_batch(found.prompts_done)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    places = [position * count + layer for position in _inverse(order) for layer in range(count)]
    return LensReadings(
        prompts=[keys[index][0] for index in order],
        positions=[keys[index][1] for index in order],
        layers=list(layers),
        readout=readouts.gather(places, (total, count)),
        kl=divergences.reshape(total, count)[order].cpu(),
    )


def _chunks(
    model: StandardizedTransformer, states: Float[Tensor, "reading layer hidden"], rows: Int[Tensor, " reading"]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Readings, and the rows of their categories, in parts whose logits are held at one time."""
    width = states.shape[1] * model.vocab_size
    size = max(_LOGITS_AT_ONCE // width, rows_at_once(width, states.device))
    return states.split(size), rows.split(size)


@torch.inference_mode()
def _reduce(
    model: StandardizedTransformer,
    states: Float[Tensor, "reading layer hidden"],
    top_k: int,
    followed: Categories,
    count: int,
    inverse: bool,
) -> Iterator[tuple[Readout, Float[Tensor, " row"]]]:
    """What is kept of the first `count` layers, reading by reading; the last layer is what they are compared with."""
    logits = model.project_on_vocab(states)
    logits = -logits if inverse else logits
    size = rows_at_once(model.vocab_size, logits.device)
    readings = max(1, size // states.shape[1])
    for part, rows in zip(logits.split(readings), torch.arange(len(states)).split(readings), strict=True):
        last = normalize(part[:, -1:])
        for some in part[:, :count].split(min(size, count), dim=1):
            log_probs = normalize(some)
            by_row = rows.repeat_interleave(some.shape[1]).to(states.device)
            readout = read_log_probs(log_probs.flatten(0, 1), top_k, followed[by_row])
            yield readout, divergence(last, log_probs).flatten()


@runs_elsewhere
@torch.inference_mode()
def likeliest_tokens(model: StandardizedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """The token that comes most probably of each state after the last layer."""
    return [int(token) for part in states.split(64) for token in model.project_on_vocab(part).argmax(-1)]


def _inverse(order: Sequence[int]) -> list[int]:
    """Where each item stands in an order."""
    return sorted(range(len(order)), key=order.__getitem__)
