"""Direct logit attribution: the contribution of each part of a model to a logit, or to a difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attribution.linearize import freeze_norm, offset, pull_back
from nnterp_mcp.experiments.attribution.logit_direction import LogitDirection, find_direction
from nnterp_mcp.experiments.attribution.residual_decomposition import PartStates, begins_with_embedding, read_parts
from nnterp_mcp.experiments.attribution.sublayer_writes import LayerWrites, Sublayer, Write, find_writes
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.selectors import resolve_layers

Split = Literal["layer", "sublayer", "head", "source_token", "neuron"]
PartKind = Literal[
    "embeddings",
    "positions",
    "layer",
    "attention",
    "head",
    "attention bias",
    "mlp",
    "neuron",
    "mlp bias",
    "feature",
    "decoder bias",
    "reconstruction error",
    "rest",
    "final norm bias",
    "head bias",
    "token choice",
]

_NUMBERS = 2**22
"""Logits that are taken apart at once, about."""


@dataclass(frozen=True)
class LogitPart:
    """Something that is added to the residual stream, or after it.

    Attributes:
        kind: Its kind. `feature`, `decoder bias` and `reconstruction error` make up the states that a dictionary
            reconstructs. `rest` is what a layer adds other than attention and MLP: a mixer, an MLP that is no module of
            its own, an intervention. `token choice` is log-sum-exp over a category's tokens less their weighted mean.
        layer: The layer; None outside of layers.
        index: The head or the neuron.
        source: Of a head's contribution, what it reads from one position of the prompt alone.
    """

    kind: PartKind
    layer: int | None = None
    index: int | None = None
    source: int | None = None


@dataclass(frozen=True)
class DirectLogits:
    """The contributions of parts, on the CPU, in float64.

    Attributes:
        parts: The parts.
        values: The contribution of each.
        metric: The metric of the model itself, which they add up to.
        error: The largest difference between their sum and the metric.
        rescaled: Whether something after the head (softcap, scale) changes logits; its factor is frozen too.
        streams: The direction of each prompt's last residual stream whose product with a part is its contribution.
    """

    parts: list[LogitPart]
    values: Float[Tensor, "prompt part"]
    metric: Float[Tensor, " prompt"]
    error: float
    rescaled: bool
    streams: Float[Tensor, "prompt hidden"]


def attribute_directly(
    model: StandardizedTransformer,
    work: Workload,
    targets: Sequence[Sequence[Sequence[int]]],
    split: Split = "sublayer",
    *,
    layers: str | int | Sequence[int] = "all",
) -> DirectLogits:
    """Splits a logit after each prompt's last token, or the difference of two, into what each part adds to it.

    The final norm is frozen at the scale that it has in the run, and so are a norm after a sublayer, a softcap or scale
    after the head, and the weights of several tokens in a category. All else is linear, so that the parts
    add up. It sees direct paths only: a part that acts through later layers counts where they write. Frozen scales hide
    the effect of a part on them.

    Args:
        model: The model.
        work: The prompts.
        targets: Token ids for each prompt: of the answer, and of the alternative; the answer's logit alone
            where there is only one category. Several tokens in a category count as one with their summed probability.
        split: Into whole layers; attention and MLP; heads and MLPs; what each head reads from each token, and MLPs; or
            attention and neurons. A head's contribution is split with its attention pattern frozen: the attention of
            the last token to a source, times the source's value through the output projection (OV).
        layers: The layers that are split further; the others count as wholes.

    Raises:
        InvalidRequest: A layer does not exist.
        Unsupported: The model's parts do not add up to its logits, or cannot be told apart.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); nostalgebraist, "interpreting
    GPT: the logit lens" (2020).
    """
    (found,) = attribute_each(model, work, [targets], split, layers=layers)
    return found


def attribute_each(
    model: StandardizedTransformer,
    work: Workload,
    target_sets: Sequence[Sequence[Sequence[Sequence[int]]]],
    split: Split = "sublayer",
    *,
    layers: str | int | Sequence[int] = "all",
) -> list[DirectLogits]:
    """Does for several sets of targets what `attribute_directly` does for one, in the same passes.

    Args:
        model: The model.
        work: The prompts.
        target_sets: The targets of each prompt, as in `attribute_directly`, once for each attribution.
        split: The parts.
        layers: The layers that are split further.

    Returns:
        The attribution of each set.

    Raises:
        InvalidRequest: A layer does not exist.
        Unsupported: The model's parts do not add up to its logits, or cannot be told apart.
    """
    if split in ("head", "source_token", "neuron"):
        model.require("weights")
    writes = {} if split == "layer" else _writes(model, resolve_layers(layers, model.num_layers, model.name))
    embedded = begins_with_embedding(model)
    categories = [category for targets in target_sets for of_prompt in targets for category in of_prompt]
    tokens = sorted({token for category in categories for token in category})

    def run(batch: Batch, numbers: Sequence[int]) -> list[tuple[_Found, ...]]:
        states = read_parts(
            model,
            batch,
            work.plan,
            writes,
            tokens,
            heads=split in ("head", "source_token"),
            sources=split == "source_token",
            neurons=split == "neuron",
            embedded=embedded,
        )
        of_sets: list[list[_Found]] = []
        for targets in target_sets:
            asked = [targets[number] for number in numbers]
            direction = find_direction(model, states.last, states.logits, tokens, asked)
            found = _Sum(model, states, direction, writes, bool(work.plan)).parts
            parts = list(found)
            values = torch.stack([amount.to(direction.metric) for amount in found.values()], 1).cpu()
            rows = zip(values, direction.metric.cpu(), direction.stream.cpu(), strict=True)
            of_sets.append([_Found(parts, *row, direction.rescaled) for row in rows])
        return list(zip(*of_sets, strict=True))

    at_once = max(1, _NUMBERS // model.vocab_size)
    found = replace(work, batch_size=at_once).run(model, run)
    return [_assemble(model, list(of_set)) for of_set in zip(*found, strict=True)]


@dataclass(frozen=True)
class _Found:
    """The contributions in one prompt, on the CPU."""

    parts: list[LogitPart]
    values: Float[Tensor, " part"]
    metric: Float[Tensor, ""]
    stream: Float[Tensor, " hidden"]
    rescaled: bool


def _writes(model: StandardizedTransformer, layers: Sequence[int]) -> dict[int, LayerWrites]:
    """The writes of the layers that are split.

    Raises:
        Unsupported: One of them adds in a way that cannot be told.
    """
    if not layers:
        return {}
    seen = find_writes(model)
    found: dict[int, LayerWrites] = {}
    for layer in layers:
        writes = seen[layer]
        if writes is not None:
            found[layer] = writes
        elif model.anatomy.layers[layer].runs:
            raise Unsupported(
                f"what attention and MLP add cannot be told apart in layer {layer} of {model.name}: they do not add up "
                "to what the layer does to the residual stream.",
                "Attribute to whole layers, or give layers without this one.",
            )
    return found


def _assemble(model: StandardizedTransformer, found: Sequence[_Found]) -> DirectLogits:
    """All prompts' values in one table; a part that a batch does not have adds nothing there.

    Raises:
        Unsupported: They do not add up.
    """
    parts = list(dict.fromkeys(part for told in found for part in told.parts))
    column = {part: at for at, part in enumerate(parts)}
    values = torch.zeros(len(found), len(parts), dtype=torch.float64)
    for row, told in enumerate(found):
        values[row, [column[part] for part in told.parts]] = told.values
    metric = torch.stack([told.metric for told in found])
    gaps = (values.sum(1) - metric).abs()
    allowed = 10 * TOLERANCES.get(model.module.dtype, 1e-1) * values.abs().amax(1).clamp_min(1)
    if bool((gaps > allowed).any()):
        worst = int((gaps - allowed).argmax())
        raise Unsupported(
            f"the parts of {model.name} add up to {float(values[worst].sum()):.4g}, and its logits say "
            f"{float(metric[worst]):.4g}: something in it is not linear once its norms are frozen.",
            "Attribute to whole layers, or by gradients or patching.",
        )
    streams = torch.stack([told.stream for told in found])
    return DirectLogits(parts, values, metric, float(gaps.max()), any(told.rescaled for told in found), streams)


@dataclass(frozen=True)
class _Sum:
    """Adds up what the parts of one batch contribute, into `parts`: by part, a number for each row."""

    model: StandardizedTransformer
    states: PartStates
    direction: LogitDirection
    writes: dict[int, LayerWrites]
    edited: bool
    parts: dict[LogitPart, Float[Tensor, " row"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._embed()
        before = self.states.entry
        for layer, after in self.states.after.items():
            self._layer(layer, after - before)
            before = after
        for kind, amount in self.direction.constants.items():
            self.parts[LogitPart(kind)] = amount

    def _along(self, states: Float[Tensor, "row hidden"]) -> Float[Tensor, " row"]:
        """The contribution of a vector in the last residual stream to the metric."""
        return (states.to(self.direction.stream) * self.direction.stream).sum(-1)

    def _embed(self) -> None:
        if self.states.embeddings is None:
            self.parts[LogitPart("embeddings")] = self._along(self.states.entry)
            return
        self.parts[LogitPart("embeddings")] = self._along(self.states.embeddings)
        added = self.states.entry - self.states.embeddings
        if bool(added.any()):
            self.parts[LogitPart("positions")] = self._along(added)

    def _layer(self, layer: int, change: Float[Tensor, "row hidden"]) -> None:
        writes = self.writes.get(layer)
        if writes is None:
            self.parts[LogitPart("layer", layer)] = self._along(change)
            return
        told = torch.zeros_like(self.direction.metric)
        for site, write in writes.sublayers.items():
            told = told + self._sublayer(layer, site, write)
        if writes.rest or self.edited:
            self.parts[LogitPart("rest", layer)] = self._along(change) - told

    def _sublayer(self, layer: int, site: Sublayer, write: Write) -> Float[Tensor, " row"]:
        """Adds the parts of a sublayer, and returns their sum."""
        output = self.states.outputs[site, layer].double()
        stream = self.direction.stream * write.factor
        parts = self._inside(layer, site, write, stream)
        if not parts:
            whole = LogitPart("attention" if site == "attentions_output" else "mlp", layer)
            parts = {whole: (output.to(stream) * stream).sum(-1)}
        self.parts.update(parts)
        return torch.stack(list(parts.values())).sum(0)

    def _inside(self, layer: int, site: Sublayer, write: Write, stream: Tensor) -> dict[LogitPart, Tensor]:
        """The contributions of a sublayer's parts, which are followed by its norm and multiplier."""
        pulled, bias = stream * write.multiplier, torch.zeros_like(self.direction.metric)
        raw = self.states.raw.get((site, layer))
        if write.norm is not None and raw is not None:
            with self.model.standing_down():
                norm = freeze_norm(write.norm, raw.double())
            pulled, bias = norm.pull(pulled), (norm.bias * pulled).sum(-1)
        return (self._heads if site == "attentions_output" else self._neurons)(layer, pulled, bias)

    def _heads(self, layer: int, pulled: Tensor, bias: Tensor) -> dict[LogitPart, Tensor]:
        """The contributions of each head and of the biases; empty where not asked for, or without a projection."""
        read, site = self.states.heads.get(layer), self.model.anatomy.layers[layer].output_projection
        if read is None or site is None:
            return {}
        amounts, constant = self._project(site.module, read.flatten(1), pulled)
        parts = self._by_source(layer, site.module, pulled)
        if not parts:
            by_head = amounts.unflatten(-1, read.shape[1:]).sum(-1).unbind(1)
            parts = {LogitPart("head", layer, head): amount for head, amount in enumerate(by_head)}
        return parts | _nonzero(LogitPart("attention bias", layer), constant + bias)

    def _by_source(self, layer: int, projection: nn.Module, pulled: Tensor) -> dict[LogitPart, Tensor]:
        """The contribution of each source token to each head; empty where not asked for."""
        sources = self.states.sources.get(layer)
        if sources is None:
            return {}
        with self.model.standing_down():
            direction = pull_back(projection, self.states.heads[layer].flatten(1), pulled)
        direction = direction.unflatten(-1, self.states.heads[layer].shape[1:])
        read = sources.patterns * torch.einsum("rphw,rhw->rhp", sources.values, direction)
        heads = enumerate(read.unbind(1))
        return {LogitPart("head", layer, head, at): x for head, of in heads for at, x in enumerate(of.unbind(1))}

    def _neurons(self, layer: int, pulled: Tensor, bias: Tensor) -> dict[LogitPart, Tensor]:
        """The contributions of each neuron and of the biases; empty where not asked for, or without a projection."""
        read, site = self.states.neurons.get(layer), self.model.anatomy.layers[layer].mlp_projection
        if read is None or site is None:
            return {}
        amounts, constant = self._project(site.module, read, pulled)
        parts = {LogitPart("neuron", layer, neuron): amount for neuron, amount in enumerate(amounts.unbind(1))}
        return parts | _nonzero(LogitPart("mlp bias", layer), constant + bias)

    def _project(
        self, module: nn.Module, states: Float[Tensor, "row in"], direction: Float[Tensor, "row out"]
    ) -> tuple[Float[Tensor, "row in"], Float[Tensor, " row"]]:
        """The contributions of each input of a linear map, and of its bias, along a direction of its outputs."""
        with self.model.standing_down():
            amounts = pull_back(module, states, direction) * states.double()
            return amounts, (offset(module, states) * direction).sum(-1)


def _nonzero(part: LogitPart, amount: Tensor) -> dict[LogitPart, Tensor]:
    return {part: amount} if bool(amount.any()) else {}
