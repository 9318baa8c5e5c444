"""What a model is made of, under the standard names: modules, and where in them hidden states pass."""

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

    Attributes:
        module: The module.
        path: Its dotted path below the Hugging Face model.
        entry: Which input is the hidden state: a position, or a keyword.
        exit: Which element of the output is the hidden state; None when the output is the tensor itself.
        width: Number of elements of the output; 1 when the output is the tensor itself.
        carries: Whether those other elements hold something that a later module needs.
        mutated: Whether the model writes to the hidden state after the module has returned it.
        factor: What the model multiplies the output's hidden state by before it uses it; the product is what is read.
    """

    module: nn.Module
    path: str
    entry: int | str | None = 0
    exit: int | None = None
    width: int = 1
    carries: bool = False
    mutated: bool = False
    factor: float = 1.0

    def read_input(self, inputs: Inputs) -> Float[Tensor, "batch position hidden"]:
        """The hidden state among the module's inputs."""
        args, kwargs = inputs
        return args[self.entry] if isinstance(self.entry, int) else kwargs[str(self.entry)]

    def write_input(self, inputs: Inputs, hidden: Float[Tensor, "batch position hidden"]) -> Inputs:
        """The module's inputs with another hidden state."""
        args, kwargs = inputs
        if isinstance(self.entry, int):
            return (*args[: self.entry], hidden, *args[self.entry + 1 :]), kwargs
        return args, {**kwargs, str(self.entry): hidden}

    def read_output(self, output: Any) -> Float[Tensor, "batch position hidden"]:
        """The hidden state in what the module returned."""
        hidden = output if self.exit is None else output[self.exit]
        return hidden if self.factor == 1 else hidden * self.factor

    def write_output(self, output: Any, hidden: Float[Tensor, "batch position hidden"]) -> Any:
        """What the module returned, with another hidden state."""
        if self.factor != 1:
            hidden = self._divided(output if self.exit is None else output[self.exit], hidden)
        if self.exit is None:
            return hidden
        items: Sequence[Any] = list(output)
        rebuilt = [*items[: self.exit], hidden, *items[self.exit + 1 :]]
        return rebuilt if isinstance(output, list) else tuple(rebuilt)

    def _divided(
        self, before: Float[Tensor, "batch position hidden"], hidden: Float[Tensor, "batch position hidden"]
    ) -> Float[Tensor, "batch position hidden"]:
        """What the model will multiply; numbers that stayed the same are left alone, not rounded twice."""
        divided = hidden / self.factor
        return divided if hidden.requires_grad else torch.where(hidden == before * self.factor, before, divided)

    def make_output(self, hidden: Float[Tensor, "batch position hidden"]) -> Any:
        """An output for when the module did not run: the hidden state, and None for all else."""
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
        attention_raw: Whose output is what attention computes: the attention module, except where it adds the
            residual stream itself.
        mlp_raw: The same for the MLP.
        attention_contribution: Whose output is what attention adds to the residual stream: the norm behind it where
            there is one, and with the factor by which the model multiplies it.
        mlp_contribution: The same for the MLP.
        core: The module that multiplies probabilities and values: the attention module or one inside it.
        output_projection: The linear map from the heads' outputs to the residual stream, or None.
        num_heads: Number of attention heads; 0 without attention.
        product: Code and line at which probabilities multiply values; None where they are never formed.
        score_product: Which of the core's products is that of queries and keys; None where it cannot be told.
        values_by_head: Whether what the probabilities multiply is laid out head by head.
        horizon: How far back its queries read.
        kind: "full_attention", "sliding_attention", … or what stands in attention's place: "mamba", ….
        mixers: Paths of other modules that move information between positions.
        additive: Whether its input and what attention and MLP add to it make up its output, and nothing else.
        note: Why a part is missing, where it is not for want of a candidate.
        runs: Whether the layer runs on a prompt of text alone; cross-attention to images does not.
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
        head_is_direct: Whether final norm and head are all that lies between the last layer and the logits.
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
        """How many layers there are."""
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
