"""The logit lens: what each layer would predict if the model ended there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.interventions.activations import get_token_activations
from nnterp_mcp.interventions.engine import NOTHING, Plan, Read, forward
from nnterp_mcp.interventions.places import Place
from nnterp_mcp.model.prompts import Batch, EncodedPrompt, fill_batches
from nnterp_mcp.model.standardized import StandardizedTransformer

_LOGITS_AT_ONCE = 1 << 24
"""Logits held at one time: rows are projected in chunks of this many over the vocabulary."""


@dataclass(frozen=True)
class LensReadings:
    """What the lens reads at some positions of some prompts, on the CPU.

    Attributes:
        prompts: The prompt of each reading.
        positions: Its position in the unpadded prompt.
        layers: The layers that were read, in ascending order.
        top_ids: The likeliest tokens.
        top_probs: Their probabilities.
        entropy: Entropy of each distribution, in nats.
        kl: KL(last layer ‖ this layer), in nats.
        target_probs: Summed probability of each target category's tokens.
        target_ranks: Rank of each category's likeliest token; 1 is the top.
    """

    prompts: list[int]
    positions: list[int]
    layers: list[int]
    top_ids: Int[Tensor, "reading layer k"]
    top_probs: Float[Tensor, "reading layer k"]
    entropy: Float[Tensor, "reading layer"]
    kl: Float[Tensor, "reading layer"]
    target_probs: Float[Tensor, "reading layer category"]
    target_ranks: Int[Tensor, "reading layer category"]


def read_lens(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    top_k: int = 3,
    targets: Mapping[str, Sequence[int]] | None = None,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda prompts_done: None,
) -> LensReadings:
    """Reads the residual stream after each layer through the model's own final norm, head and logit transform.

    Measures what the last layers would do with a state as it is, so it misleads where early layers write in another
    basis than the last one: a flat or odd distribution there is no proof that the information is absent. At the
    last layer it is the model's output, exactly.

    Everything is reduced beside the model: only the numbers in `LensReadings` leave the device.

    Args:
        model: The model.
        prompts: The prompts.
        positions: For each prompt, the positions to read.
        layers: The layers to read, in ascending order.
        top_k: How many of the likeliest tokens to keep.
        targets: Token ids by category, whose probability and rank to follow.
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
    device = model.device
    categories = [torch.tensor(ids, device=device) for ids in (targets or {}).values()]
    read = sorted({*layers, model.num_layers - 1})
    asked = {prompt.index: list(at) for prompt, at in zip(prompts, positions, strict=True)}
    parts: list[dict[str, Tensor]] = []
    keys: list[tuple[int, int]] = []
    done = 0
    for batch in fill_batches(prompts, batch_tokens, model.pad_id, device, pad=model.can("batch")):
        wanted = [(row, at) for row, prompt in enumerate(batch.prompts) for at in asked[prompt.index]]
        keys += [(batch.prompts[row].index, at) for row, at in wanted]
        states = _read_states(model, batch, wanted, read, plan)
        parts += _reduce(model, states, top_k, categories)
        done += len(batch.prompts)
        on_batch(done)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    kept = [read.index(layer) for layer in layers]
    whole = {name: torch.cat([part[name] for part in parts])[order][:, kept].cpu() for name in parts[0]}
    return LensReadings(
        prompts=[keys[index][0] for index in order],
        positions=[keys[index][1] for index in order],
        layers=list(layers),
        **whole,
    )


def _read_states(
    model: StandardizedTransformer,
    batch: Batch,
    wanted: Sequence[tuple[int, int]],
    layers: Sequence[int],
    plan: Plan,
) -> Float[Tensor, "reading layer hidden"]:
    """The states at the wanted rows and positions; the head never runs."""
    rows = torch.tensor([row for row, _ in wanted], device=batch.inputs["input_ids"].device)
    columns = torch.tensor([batch.padding[row] + at for row, at in wanted], device=rows.device)
    reads = [
        Read(Place("layers_output", layer), lambda state: state[rows, columns].to(rows.device)) for layer in layers
    ]
    return torch.stack(forward(model, batch, plan, reads).reads, dim=1)


@torch.inference_mode()
def _reduce(
    model: StandardizedTransformer,
    states: Float[Tensor, "reading layer hidden"],
    top_k: int,
    categories: Sequence[Int[Tensor, " token"]],
) -> list[dict[str, Tensor]]:
    chunk = max(1, _LOGITS_AT_ONCE // (states.shape[1] * model.vocab_size))
    return [_describe(model.project_on_vocab(part), top_k, categories) for part in states.split(chunk)]


def _describe(
    logits: Float[Tensor, "reading layer vocabulary"], top_k: int, categories: Sequence[Int[Tensor, " token"]]
) -> dict[str, Tensor]:
    """What is kept of the distributions; the last layer's is the one that the others are compared with."""
    logits = logits.float()
    # Not log_softmax: on a CPU it sums a large vocabulary one by one, and loses 1e-5 of a probability in float32.
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    probs = log_probs.exp()
    top = probs.topk(min(top_k, probs.shape[-1]), dim=-1)
    final_probs, final_log_probs = probs[:, -1:], log_probs[:, -1:]
    at = [logits[..., ids].amax(-1, keepdim=True) for ids in categories]
    empty = logits.new_empty((*logits.shape[:2], 0))
    return {
        "top_ids": top.indices,
        "top_probs": top.values,
        "entropy": _expected(probs, -log_probs),
        "kl": _expected(final_probs, final_log_probs - log_probs).clamp_min(0),
        "target_probs": torch.stack([probs[..., ids].sum(-1) for ids in categories], -1) if at else empty,
        "target_ranks": torch.stack([1 + (logits > best).sum(-1) for best in at], -1) if at else empty.long(),
    }


def _expected(probs: Tensor, values: Tensor) -> Tensor:
    """The mean of values under probabilities; where a probability is zero the value does not count."""
    return torch.where(probs > 0, probs * values, 0).sum(-1)


@torch.no_grad()
def logit_lens(
    nn_model: StandardizedTransformer,
    prompts: str | Sequence[str],
    remote: bool = False,
    return_inv_logits: bool = False,
) -> Float[Tensor, "prompt layer vocabulary"] | tuple[Tensor, Tensor]:
    """The whole next-token distribution of every layer after each prompt, on the CPU.

    `read_lens` gives the numbers that are wanted of it without the memory that this takes.

    Args:
        nn_model: The model.
        prompts: One text or several.
        remote: Only False.
        return_inv_logits: Return the inverse lens too: the distribution of the negated logits, whose top tokens are
            those that a layer speaks against most.

    Raises:
        InvalidRequest: A prompt is empty.
        Unsupported: `remote` is set, or the model's lens is not exact.
    """
    nn_model.require("lens")
    states = get_token_activations(nn_model, prompts, remote=remote).transpose(0, 1)
    logits = [nn_model.project_on_vocab(rows).float() for rows in states]
    probs = torch.stack([rows.softmax(-1).cpu() for rows in logits])
    if not return_inv_logits:
        return probs
    return probs, torch.stack([(-rows).softmax(-1).cpu() for rows in logits])
