"""The modules of a model under the standard names, and the inputs and outputs that carry hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.model.structure.attention_span import EVERYTHING, Horizon

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of a module."""


@dataclass(frozen=True)
class Site:
    """A module through which the residual stream, or a contribution to it, passes.

    Its states have the shape (batch, position, hidden), with one more dimension where there are several streams.

    Attributes:
        module: The module.
        path: Its dotted path below the Hugging Face model.
        entry: Which input is the hidden state: a position, or a keyword.
        exit: Which element of the output is the hidden state; None when the output is the tensor itself.
        width: Number of elements of the output; 1 when the output is the tensor itself.
        carries: True if a later module needs those other elements.
        mutated: True if the model writes to the hidden state in place after the module has returned it.
        factor: The model's multiplier of the output's hidden state; reads return the product.
    """

    module: nn.Module
    path: str
    entry: int | str | None = 0
    exit: int | None = None
    width: int = 1
    carries: bool = False
    mutated: bool = False
    factor: float = 1.0

    def read_input(self, inputs: Inputs) -> Float[Tensor, "*batch position hidden"]:
        """The hidden state among the module's inputs."""
        args, kwargs = inputs
        return args[self.entry] if isinstance(self.entry, int) else kwargs[str(self.entry)]

    def write_input(self, inputs: Inputs, hidden: Float[Tensor, "*batch position hidden"]) -> Inputs:
        """The module's inputs with another hidden state."""
        args, kwargs = inputs
        if isinstance(self.entry, int):
            return (*args[: self.entry], hidden, *args[self.entry + 1 :]), kwargs
        return args, {**kwargs, str(self.entry): hidden}

    def read_output(self, output: Any) -> Float[Tensor, "*batch position hidden"]:
        """The hidden state in what the module returned."""
        hidden = output if self.exit is None else output[self.exit]
        return hidden if self.factor == 1 else hidden * self.factor

    def write_output(self, output: Any, hidden: Float[Tensor, "*batch position hidden"]) -> Any:
        """The module's output with another hidden state."""
        if self.factor != 1:
            hidden = self._divided(output if self.exit is None else output[self.exit], hidden)
        if self.exit is None:
            return hidden
        items: Sequence[Any] = list(output)
        rebuilt = [*items[: self.exit], hidden, *items[self.exit + 1 :]]
        return rebuilt if isinstance(output, list) else tuple(rebuilt)

    def _divided(
        self, before: Float[Tensor, "*batch position hidden"], hidden: Float[Tensor, "*batch position hidden"]
    ) -> Float[Tensor, "*batch position hidden"]:
        """The hidden state before the model's multiplier; unchanged numbers are kept exactly, not rounded twice."""
        divided = hidden / self.factor
        return divided if hidden.requires_grad else torch.where(hidden == before * self.factor, before, divided)

    def make_output(self, hidden: Float[Tensor, "*batch position hidden"]) -> Any:
        """A substitute output of a module that did not run: the hidden state, and None for the other elements."""
        if self.exit is None:
            return hidden
        return tuple(hidden if place == self.exit else None for place in range(self.width))


@dataclass(frozen=True)
class LayerAnatomy:
    """One layer.

    Attributes:
        index: Its number, from 0.
        block: The whole layer: the residual stream goes in and comes out.
        attention: The attention module, or None.
        mlp: The module that works on each position by itself (dense or a mixture of experts), or None.
        attention_raw: The module that returns attention's output: the attention module, except where that one adds
            the residual stream itself.
        mlp_raw: The same for the MLP.
        attention_contribution: The module that returns what is added to the residual stream: the norm that follows
            attention where there is one, with the model's multiplier.
        mlp_contribution: The same for the MLP.
        core: The module that multiplies probabilities and values: the attention module or one inside it.
        output_projection: The linear map from the heads' outputs to the residual stream, or None.
        mlp_projection: The linear map from the MLP's neurons to its output; None where experts have one each.
        num_neurons: The width of what it reads; 0 without it.
        num_heads: Number of attention heads; 0 without attention.
        product: Code and line at which probabilities multiply values; None where they are never formed.
        score_product: Ordinal of the core's product of queries and keys; None where it is not identified.
        values_by_head: True if the values have a head dimension.
        horizon: How far back its queries read.
        kind: "full_attention", "sliding_attention", … or the mixer in attention's place: "mamba", ….
        mixers: Paths of other modules that move information between positions.
        additive: True if its output is its input plus the contributions of attention and MLP, and nothing else.
        note: Why a part is missing that has several candidates.
        runs: True if the layer runs on text alone; cross-attention to images does not.
    """

    index: int
    block: Site
    attention: Site | None = None
    mlp: Site | None = None
    attention_raw: Site | None = None
    mlp_raw: Site | None = None
    attention_contribution: Site | None = None
    mlp_contribution: Site | None = None
    core: Site | None = None
    output_projection: Site | None = None
    mlp_projection: Site | None = None
    num_neurons: int = 0
    num_heads: int = 0
    product: tuple[CodeType, int] | None = None
    score_product: int | None = None
    values_by_head: bool = False
    horizon: Horizon = EVERYTHING
    kind: str = ""
    mixers: tuple[str, ...] = ()
    additive: bool = False
    note: str = ""
    runs: bool = True


@dataclass(frozen=True)
class Anatomy:
    """A whole model under the standard names.

    Attributes:
        embed_tokens: The token embedding.
        layers_module: The list that holds the layers.
        layers: The layers, in order.
        ln_final: The norm between the last layer and the head, or None where there is none.
        lm_head: The module from (normed) hidden states to logits, or None where it is not a module of its
            own.
        hidden_size: Width of the residual stream.
        vocab_size: Number of logits.
        streams: Number of residual streams carried in parallel; 1 in almost every model.
        stream_shape: The shape of a layer's output on the probe of 1 × 5 tokens.
        head_is_direct: True if only the final norm and the head lie between the last layer and the logits.
        faults: Reasons for which the standard names do not describe this model; empty when they do.
    """

    embed_tokens: Site
    layers_module: Site
    layers: tuple[LayerAnatomy, ...]
    ln_final: Site | None
    lm_head: Site | None
    hidden_size: int
    vocab_size: int
    streams: int = 1
    stream_shape: tuple[int, ...] = ()
    head_is_direct: bool = False
    faults: tuple[str, ...] = ()

    @property
    def last(self) -> LayerAnatomy:
        """The last layer that runs."""
        return next(layer for layer in reversed(self.layers) if layer.runs)

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        """The largest number of attention heads in a layer."""
        return max((layer.num_heads for layer in self.layers), default=0)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have attention."""
        return tuple(layer.index for layer in self.layers if layer.attention is not None)

    def with_faults(self, *faults: str) -> Anatomy:
        """This anatomy with more faults."""
        return replace(self, faults=(*self.faults, *faults))
