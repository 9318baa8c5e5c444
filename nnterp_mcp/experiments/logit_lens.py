"""The logit lens: what each layer would predict if the model ended there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.batching import run_batches
from nnterp_mcp.engine.forward import NOTHING, LogitReduction, Plan, forward
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import join, summarize_lens
from nnterp_mcp.experiments.residual_states import capture_stream
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


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
    asked = {prompt.index: at for prompt, at in zip(prompts, positions, strict=True)}

    def places(batch: Batch) -> list[tuple[int, int]]:
        return [(row, at) for row, prompt in enumerate(batch.prompts) for at in asked[prompt.index]]

    def run(batch: Batch) -> dict[str, Tensor]:
        wanted = places(batch)
        rows = torch.tensor([place[batch.prompts[row].index] for row, _ in wanted], device=model.device)
        chosen = followed[rows]
        options = {"count": len(layers), "inverse": inverse, "top_k": top_k, "ids": chosen.ids, "real": chosen.real}
        reduction = LogitReduction(summarize_lens, options, of_captures=True, width=len(read) * model.vocab_size)
        numbers = forward(model, batch, plan, capture_stream(batch, wanted, read), reduction=reduction).numbers
        require_finite(numbers.pop("total"), "logits")
        return numbers

    keys: list[tuple[int, int]] = []
    parts: list[dict[str, Tensor]] = []
    done = 0
    for batch, numbers in run_batches(model, prompts, batch_tokens, run):
        keys += [(batch.prompts[row].index, at) for row, at in places(batch)]
        parts.append(numbers)
        done += len(batch.prompts)
        on_batch(done)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    whole = {name: values[order].cpu() for name, values in join(parts).items()}
    return LensReadings(
        prompts=[keys[index][0] for index in order],
        positions=[keys[index][1] for index in order],
        layers=list(layers),
        kl=whole.pop("kl"),
        readout=Readout(**whole),
    )


@runs_elsewhere
@torch.inference_mode()
def likeliest_tokens(model: StandardizedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """The token that comes most probably of each state after the last layer."""
    return [int(token) for part in states.split(64) for token in model.project_on_vocab(part).argmax(-1)]
