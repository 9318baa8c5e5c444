"""Inside attention, in a trace: probabilities, queries, keys, values and the output of each head."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsIndex

from jaxtyping import Float
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.accessors import ModuleList, layer_index, require_part
from nnterp_mcp.model.structure.anatomy import LayerAnatomy, Site
from nnterp_mcp.model.structure.attention_taps import Quantity, location
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.model.traced_tensor import TracedTensor
from nnterp_mcp.model.wrapped import WrappedModel


@dataclass(frozen=True)
class _OfLayers:
    model: WrappedModel

    def __len__(self) -> int:
        """Number of layers."""
        return self.model.num_layers

    def _facts(self, layer: SupportsIndex) -> LayerAnatomy:
        anatomy, name = self.model.anatomy, self.model.name
        facts = anatomy.layers[layer_index(layer, anatomy, name)]
        require_part(facts, "attention", anatomy, name)
        return facts

    def _location(self, facts: LayerAnatomy, quantity: Quantity) -> str:
        assert facts.core is not None
        return location(self.model.envoy(facts.core).path, quantity)


class AttentionProbabilities(_OfLayers):
    """The attention probabilities of every layer: `model.attention_probabilities[3]`, inside a trace.

    They are what multiplies the values: after the mask, the softmax, and whatever the architecture does
    between the two. Rows sum to one, except where an attention sink takes its share. They show where
    information could be read from, not what was done with it.
    """

    quantity: ClassVar[Quantity] = "attention_probabilities"

    @property
    def enabled(self) -> bool:
        """True under eager attention, which forms them."""
        return self.model.attention == "eager"

    def __getitem__(self, layer: SupportsIndex) -> Float[TracedTensor, "batch head query key"]:
        """The probabilities of one layer. Edits in place take effect; padding is included."""
        self.model.require("attention")
        source = self._named_source(layer)
        return Mediator.value(self._place(layer)) if source is None else source.output

    def __setitem__(self, layer: SupportsIndex, value: Float[Tensor, "batch head query key"]) -> None:
        """Replace the probabilities of one layer."""
        self.model.require("attention_edit")
        source = self._named_source(layer)
        if source is None:
            Mediator.swap(self._place(layer), value)
        else:
            source.output = value

    def print_source(self, layer: SupportsIndex = 0, allow_dispatch: bool = True) -> None:
        """Print the line of the modelling code at which they are taken, and what is around it; or what a config names.

        Args:
            allow_dispatch: Accepted for code written for nnterp; the weights are there.
        """
        if self._names_source():
            with self.model.trace(input_ids=probe_ids(self.model.module)) as tracer:
                print(self._named_source(layer))
                tracer.stop()
        else:
            print(product_source(self._forming(layer)))

    def _names_source(self) -> bool:
        config = self.model.rename_config
        return config is not None and config.attn_prob_source is not None

    def _named_source(self, layer: SupportsIndex) -> Any:
        config = self.model.rename_config
        if config is None or config.attn_prob_source is None:
            return None
        return config.attn_prob_source(ModuleList(self.model, "attention")[layer])

    def core(self, layer: SupportsIndex) -> Site | None:
        """The module whose code forms those of one layer; None where a `RenameConfig` names the operation.

        Raises:
            Unsupported: They are not formed.
        """
        return None if self._names_source() else self._formed(layer).core

    def _place(self, layer: SupportsIndex) -> str:
        return self._location(self._formed(layer), "attention_probabilities")

    def _formed(self, layer: SupportsIndex) -> LayerAnatomy:
        facts = self._forming(layer)
        if not self.enabled:
            raise Unsupported(
                f"{self.model.name} forms no attention probabilities under {self.model.attention} attention.",
                'Call model.set_attention("eager") first, or load with enable_attention_probs=True.',
            )
        return facts

    def _forming(self, layer: SupportsIndex) -> LayerAnatomy:
        facts = self._facts(layer)
        if facts.product is None:
            raise Unsupported(
                f"layer {facts.index} of {self.model.name} forms no attention probabilities ({facts.kind})."
            )
        return facts


@dataclass(frozen=True)
class HeadStates(_OfLayers):
    """Queries, keys or values of every layer, head by head: `model.queries[3]`, inside a trace.

    They are what enters the attention product: after norms and rotary embedding, and with the scale of the
    scores where the architecture applies it to the queries. Keys and values that several heads share appear
    once for each head, so that a head can be edited by itself. Under any attention implementation that goes
    through PyTorch's own operations. Read queries before keys before values.
    """

    quantity: Quantity

    def __getitem__(self, layer: SupportsIndex) -> Float[TracedTensor, "batch head position width"]:
        """The states of one layer. Edits in place take effect; padding is included."""
        return Mediator.value(self._place(layer))

    def __setitem__(self, layer: SupportsIndex, value: Float[Tensor, "batch head position width"]) -> None:
        """Replace the states of one layer."""
        Mediator.swap(self._place(layer), value)

    def core(self, layer: SupportsIndex) -> Site | None:
        """The module whose code makes those of one layer.

        Raises:
            Unsupported: They cannot be told apart.
        """
        return self._readable(layer).core

    def _place(self, layer: SupportsIndex) -> str:
        return self._location(self._readable(layer), self.quantity)

    def _readable(self, layer: SupportsIndex) -> LayerAnatomy:
        facts = self._facts(layer)
        readable = facts.values_by_head if self.quantity == "values" else facts.score_product is not None
        if not readable:
            raise Unsupported(
                f"the {self.quantity} of layer {facts.index} of {self.model.name} cannot be told apart ({facts.kind})."
            )
        return facts


class HeadsOutput(_OfLayers):
    """The input of each layer's output projection, head by head: `model.heads_output[3]`, inside a trace.

    The attention's contribution to the residual stream is linear in it: zeroing a head here removes exactly
    what that head writes. Where the architecture gates heads, this is after the gate.
    """

    def __getitem__(self, layer: SupportsIndex) -> Float[TracedTensor, "batch position head width"]:
        """The outputs of one layer's heads. Edits in place take effect."""
        site, heads = self.projection(layer)
        return self.model.envoy(site).input.unflatten(-1, (heads, -1))

    def __setitem__(self, layer: SupportsIndex, value: Float[Tensor, "batch position head width"]) -> None:
        """Replace the outputs of one layer's heads."""
        envoy: Any = self.model.envoy(self.projection(layer)[0])
        envoy.input = value.flatten(-2)

    def projection(self, layer: SupportsIndex) -> tuple[Site, int]:
        """The output projection of one layer, and how many heads it reads.

        Raises:
            Unsupported: The layer has no output projection.
        """
        facts = self._facts(layer)
        if facts.output_projection is None:
            raise Unsupported(
                f"layer {facts.index} of {self.model.name} has no projection of its own for the heads' outputs."
            )
        return facts.output_projection, facts.num_heads


def product_source(layer: LayerAnatomy) -> str:
    """The lines of the modelling code around the product of probabilities and values of a layer."""
    assert layer.core is not None
    assert layer.product is not None
    code, line = layer.product
    lines, first = inspect.getsourcelines(code)
    around = range(max(line - 4, first), min(line + 5, first + len(lines)))
    shown = [f"{'-->' if number == line else '   '} {number:5} {lines[number - first].rstrip()}" for number in around]
    head = f"{layer.core.path}: {code.co_name} in {code.co_filename}, line {line}"
    return "\n".join([head, *shown])
