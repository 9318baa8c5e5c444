"""The logit lens: the next-token distribution of each layer, as if the model ended there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.forward import LogitReduction, forward
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import (
    join,
    log_probabilities,
    rows_at_once,
    split_rows,
    summarize_distributions,
    summarize_lens,
)
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.activations import capture_stream
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch


@dataclass(frozen=True)
class LensReadings:
    """Readings of the lens at some positions of some prompts, on the CPU.

    Attributes:
        prompts: The prompt of each reading.
        positions: Its position in the unpadded prompt.
        layers: The layers that were read, in ascending order.
        readout: Top tokens, entropies and targets, by reading and layer.
        kl: KL(last layer ‖ this layer), in nats.
        plain: The readings of the plain lens at the same places, where these are those of a translating one.
    """

    prompts: list[int]
    positions: list[int]
    layers: list[int]
    readout: Readout
    kl: Float[Tensor, "reading layer"]
    plain: LensReadings | None = None


def read_lens(
    model: StandardizedTransformer,
    work: Workload,
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    inverse: bool = False,
    translation: LensTranslation | None = None,
) -> LensReadings:
    """Reads the residual stream after each layer through the model's own final norm, head and logit transform.

    Assumes that a layer writes in the basis that the head reads, so it misleads where early layers use another one: a
    flat or odd distribution there is no proof that the information is absent. At the
    last layer it is the model's output, exactly; with operations in the workload's plan, the edited model's.

    Distributions are reduced on the device: only the numbers in the readings leave it.

    Args:
        work: The prompts.
        positions: For each prompt, the positions to read.
        layers: The layers to read, in ascending order.
        top_k: Number of top tokens to return.
        categories: For each prompt, the token ids of each category whose probability and rank to follow.
        inverse: Read the distribution of the negated logits: its top tokens are those that a layer most strongly
            demotes.
        translation: What states are translated by before they are read; the plain lens reads them too.

    Returns:
        The readings in the order of the prompts and their positions.

    Raises:
        InvalidRequest: The translation is of another model, or lacks a layer.
        Unsupported: The model's lens is not exact.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    asked = [None] if translation is None else [translation, None]
    found = read_lenses(model, work, positions, layers, asked, top_k=top_k, categories=categories, inverse=inverse)
    return found[0] if translation is None else replace(found[0], plain=found[1])


def read_lenses(
    model: StandardizedTransformer,
    work: Workload,
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    translations: Sequence[LensTranslation | None],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    inverse: bool = False,
) -> list[LensReadings]:
    """Reads the same states through several lenses in one pass.

    Args:
        translations: The translation of each lens; None for the plain lens. The other arguments are those of
            `read_lens`.

    Returns:
        The readings of each lens.

    Raises:
        InvalidRequest: A translation is of another model, or lacks a layer.
        Unsupported: The model's lens is not exact.
    """
    model.require("lens")
    for translation in translations:
        if translation is not None:
            translation.require(model, layers)
    followed = Categories.of(categories or [[]] * len(positions), model.device)
    last = model.num_layers - 1
    read = [*layers] if layers[-1] == last else [*layers, last]
    count = len(layers) * len(translations)

    def run(batch: Batch, numbers: Sequence[int]) -> Sequence[Data]:
        asked = [positions[number] for number in numbers]
        owners = [number for number in numbers for _ in positions[number]]
        chosen = followed[torch.tensor(owners, dtype=torch.long, device=model.device)]
        options = {"count": count, "inverse": inverse, "top_k": top_k, "ids": chosen.ids, "real": chosen.real}
        plain = capture_stream(batch, asked, read)
        own = plain[: len(layers)]
        captures = [one if lens is None else lens.capture(one) for lens in translations for one in own]
        if captures[-1] is not plain[-1]:
            captures.append(plain[-1])  # divergences are from the model's own output
        reduction = LogitReduction(summarize_lens, options, of_captures=True, width=len(captures) * model.vocab_size)
        found = forward(model, batch, work.plan, captures, reduction=reduction).numbers
        require_finite(found.pop("total"), "logits")
        return split_rows(found, [len(here) for here in asked])

    whole = {name: values.cpu() for name, values in join(work.run(model, run)).items()}

    def readings(start: int) -> LensReadings:
        own = {name: values[:, start : start + len(layers)] for name, values in whole.items()}
        return LensReadings(
            prompts=[prompt.index for prompt, here in zip(work.prompts, positions, strict=True) for _ in here],
            positions=[at for here in positions for at in here],
            layers=list(layers),
            kl=own.pop("kl"),
            readout=Readout(**own),
        )

    return [readings(start) for start in range(0, count, len(layers))]


@torch.inference_mode()
def read_given_states(
    model: StandardizedTransformer,
    states: Float[Tensor, "state layer hidden"],
    layers: Sequence[int],
    translation: LensTranslation | None = None,
    *,
    top_k: int = 1,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Readout:
    """Reads states that were taken before, or any vectors of that width, as `read_lens` reads those of prompts.

    Args:
        states: Residual streams after the layers.
        layers: The layer of each of a state's rows.
        translation: What they are translated by; None for the plain lens.
        top_k: Number of top tokens to return.
        categories: For each state, the token ids of each category whose probability and rank to follow.

    Returns:
        The readings by state and layer, on the CPU.

    Raises:
        InvalidRequest: The translation is of another model, or lacks a layer.
        Unsupported: The model's lens is not exact, or another machine serves it.
    """
    model.require("lens")
    if model.remote_calls:
        raise Unsupported(f"{model.name} is served remotely, and given states are read through a lens on this machine.")
    if translation is not None:
        translation.require(model, layers)
        states = torch.stack([translation.translate(states[:, at], layer) for at, layer in enumerate(layers)], dim=1)
    count = len(states)
    followed = Categories.of(categories or [[]] * count, model.device)
    owners = torch.arange(count, device=model.device).repeat_interleave(len(layers))
    parts: list[Data] = []
    for rows in owners.new_tensor(range(len(owners))).split(rows_at_once(model.vocab_size, model.device)):
        log_probs = log_probabilities(model.project_on_vocab(states.flatten(0, 1)[rows]))
        require_finite(log_probs, "logits")
        own = followed[owners[rows]]
        parts.append(summarize_distributions(log_probs, top_k, own.ids, own.real))
    return Readout(**{name: values.cpu().unflatten(0, (count, -1)) for name, values in join(parts).items()})


@executed_remotely
@torch.inference_mode()
def top_tokens(model: StandardizedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """The token that comes most probably of each state after the last layer."""
    return [int(token) for part in states.split(64) for token in model.project_on_vocab(part).argmax(-1)]


def leading_from(tops: Sequence[int]) -> int:
    """The index from which on every top token is the last one: the depth at which the answer appears, and stays.

    Args:
        tops: The top token of each layer, in ascending order of the layers.
    """
    others = [index for index, top in enumerate(tops) if top != tops[-1]]
    return others[-1] + 1 if others else 0
