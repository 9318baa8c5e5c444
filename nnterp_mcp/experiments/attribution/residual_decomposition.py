"""The writes of a model's parts to the residual stream at each prompt's last token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.engine.forward import Capture, LogitReduction, Plan, forward
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.reductions import take_all, take_rows, take_tokens
from nnterp_mcp.experiments.attribution.sublayer_writes import LayerWrites, Sublayer
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt
from nnterp_mcp.request.sites import Site

_LENGTH = 3
"""Tokens of the prompts on which the beginning of the stream is looked at."""


@dataclass(frozen=True)
class ReadValues:
    """Attention from the last token of each row, and the values that it reads; zeros behind a shorter prompt.

    Attributes:
        patterns: The attention probabilities of the last token.
        values: The values, those that heads share once for each head.
    """

    patterns: Float[Tensor, "row head position"]
    values: Float[Tensor, "row position head width"]


@dataclass(frozen=True)
class PartStates:
    """States at the last token of each row.

    Attributes:
        embeddings: The token's embedding; None where the stream does not begin with it and a position's.
        entry: The residual stream before the first layer.
        after: That after each layer that runs.
        outputs: What sublayers add, of the layers that are split.
        raw: What they computed, before a norm behind them, where heads or neurons are asked for.
        heads: What each head hands to the output projection, of the layers whose heads are asked for.
        sources: What the heads read from each token, of the layers whose heads are split by it.
        neurons: What the MLP's last linear map reads, of the layers whose neurons are.
        logits: The model's logits of some tokens.
    """

    embeddings: Float[Tensor, "row hidden"] | None
    entry: Float[Tensor, "row hidden"]
    after: dict[int, Float[Tensor, "row hidden"]]
    outputs: dict[tuple[Sublayer, int], Float[Tensor, "row hidden"]]
    raw: dict[tuple[Sublayer, int], Float[Tensor, "row hidden"]]
    heads: dict[int, Float[Tensor, "row head width"]]
    sources: dict[int, ReadValues]
    neurons: dict[int, Float[Tensor, "row neuron"]]
    logits: Float[Tensor, "row token"]

    @property
    def last(self) -> Float[Tensor, "row hidden"]:
        """The residual stream after the last layer."""
        return next(reversed(self.after.values()))


def read_parts(
    model: StandardizedTransformer,
    batch: Batch,
    plan: Plan,
    writes: Mapping[int, LayerWrites],
    tokens: Sequence[int],
    *,
    heads: bool,
    sources: bool,
    neurons: bool,
    embedded: bool,
) -> PartStates:
    """Runs a batch and reads what its parts wrote.

    Args:
        model: The model.
        batch: The prompts.
        plan: The operations on the prompts.
        writes: How the layers that are split write.
        tokens: The tokens whose logits are read.
        heads: Read their heads.
        sources: Read the patterns and the values of the heads.
        neurons: Read their neurons.
        embedded: Separate the token's embedding from what is added to it.
    """
    ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
    rows = torch.arange(len(ends))
    columns = torch.tensor([batch.padding[row] + at for row, at in ends])

    running = [layer.index for layer in model.anatomy.layers if layer.runs]
    split = [Place(site, layer) for layer, found in writes.items() for site in found.sublayers]
    projected = [
        Place("heads_output", place.layer)
        for place in split
        if heads and place.site == "attentions_output" and _has_heads(model, place.layer)
    ]
    hidden = [
        Place("neurons", place.layer)
        for place in split
        if neurons and place.site == "mlps_output" and _has_neurons(model, place.layer)
    ]
    parted: dict[Sublayer, Site] = {}
    parted |= {"attentions_output": "attentions_raw_output"} if heads else {}
    parted |= {"mlps_output": "mlps_raw_output"} if neurons else {}
    raw: dict[tuple[Sublayer, int], Place] = {
        (site, layer): Place(parted[site], layer)
        for layer, found in writes.items()
        for site, write in found.sublayers.items()
        if write.norm is not None and site in parted
    }
    streams = [Place("layers_output", layer) for layer in running]
    entries = [Place("token_embeddings"), Place("layers_input", running[0])]
    places = [*entries, *streams, *split, *projected, *hidden, *raw.values()]
    at_end = {"rows": rows, "columns": columns}
    read = [place.layer for place in projected if sources and place.layer is not None]
    captures = [
        *(Capture(place, take_rows, at_end) for place in places),
        *(Capture(Place("attention_probabilities", layer), take_rows, at_end) for layer in read),
        *(Capture(Place("values", layer), take_all) for layer in read),
    ]
    result = forward(model, batch, plan, captures, ends, LogitReduction(take_tokens, {"tokens": list(tokens)}))
    taken = [states.to(model.device) for states in result.values]
    found = dict(zip(places, taken[: len(places)], strict=True))
    patterns, values = taken[len(places) :][: len(read)], taken[len(places) :][len(read) :]
    return PartStates(
        embeddings=found[places[0]].double() if embedded else None,
        entry=found[places[1]].double(),
        after={layer: found[place].double() for layer, place in zip(running, streams, strict=True)},
        outputs={(place.site, place.layer): found[place] for place in split},  # pyright: ignore[reportArgumentType]
        raw={where: found[place] for where, place in raw.items()},
        heads={place.layer: found[place] for place in projected if place.layer is not None},
        sources={layer: _sources(batch, *of_layer) for layer, *of_layer in zip(read, patterns, values, strict=True)},
        neurons={place.layer: found[place] for place in hidden if place.layer is not None},
        logits=result.numbers["logits"],
    )


def _sources(
    batch: Batch, patterns: Float[Tensor, "row head key"], values: Float[Tensor, "row column value_head width"]
) -> ReadValues:
    """Patterns and values by the position in the prompt, in float64."""
    values = values.repeat_interleave(patterns.shape[1] // values.shape[2], dim=2)
    aligned = [
        (pattern[:, padding:].T.double(), of_row[padding:].double())
        for pattern, of_row, padding in zip(patterns, values, batch.padding, strict=True)
    ]
    padded = (nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for rows in zip(*aligned, strict=True))
    by_position, values = padded
    return ReadValues(by_position.transpose(1, 2), values)


def _has_heads(model: StandardizedTransformer, layer: int | None) -> bool:
    return layer is not None and model.anatomy.layers[layer].output_projection is not None


def _has_neurons(model: StandardizedTransformer, layer: int | None) -> bool:
    return layer is not None and model.anatomy.layers[layer].mlp_projection is not None


def begins_with_embedding(model: StandardizedTransformer) -> bool:
    """Checks that the stream begins with the token's embedding plus a term that does not depend on the token.

    Seen on two prompts that differ in every token; false where the embedding is scaled or normed first.
    """
    first = next(layer.index for layer in model.anatomy.layers if layer.runs)
    captures = [Capture(place, take_all) for place in (Place("token_embeddings"), Place("layers_input", first))]
    added: list[Tensor] = []
    for token in (1, 2):
        ids = torch.full((1, _LENGTH), token, device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batch = Batch([EncodedPrompt(0, "", ids[0].tolist(), [])], inputs, [0])
        embeddings, entry = forward(model, batch, captures=captures).values
        added.append(entry.double() - embeddings.to(entry.device).double())
    return bool((added[0] - added[1]).abs().max() <= 1e-4 * added[0].abs().max())
