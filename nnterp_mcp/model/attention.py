"""Attention probabilities inside a trace: read, edited in place, assigned.

Each attention module's forward is watched while a trace wants something of it: the tensor that is about to
multiply the values is offered at a location of its own, in order with the module's other inputs and outputs.
What the trace does to it is what the model goes on with. Nothing is watched otherwise, and nothing depends on
how the modelling code names its functions and variables.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from greenlet import getcurrent
from jaxtyping import Float
from nnsight.intervention.interleaver import Interleaver, Mediator
from torch import Tensor, nn

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.accessors import layer_index, require_part
from nnterp_mcp.model.anatomy import LayerAnatomy
from nnterp_mcp.model.products import Product, ProductWatch

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer

PROBABILITIES = "attention_probabilities"


def watch(module: nn.Module, path: str, interleaver: Interleaver) -> None:
    """Let traces reach the attention probabilities of a module.

    Args:
        module: The module that multiplies probabilities and values, already wrapped by nnsight.
        path: Its path as nnsight names it.
        interleaver: The interleaver of the model's traces.
    """
    forward: Any = module.forward
    if not isinstance(forward, _Watched):
        module.__dict__["forward"] = _Watched(forward, path, interleaver)


@dataclass(frozen=True)
class AttentionProbabilities:
    """The attention probabilities of every layer: `model.attention_probabilities[3]`, inside a trace.

    They are what multiplies the values: after the mask, the softmax, and whatever the architecture does
    between the two. Rows sum to one, except where an attention sink takes its share. They show where
    information could be read from, not what was done with it.
    """

    model: StandardizedTransformer

    @property
    def enabled(self) -> bool:
        """Whether the model now computes attention in a way that forms them."""
        return self.model.attention == "eager"

    def __getitem__(self, layer: SupportsIndex) -> Float[Tensor, "batch head query key"]:
        """The probabilities of one layer. Edits in place take effect; padding is included."""
        return Mediator.value(self._location(layer))

    def __setitem__(self, layer: SupportsIndex, value: Float[Tensor, "batch head query key"]) -> None:
        """Let the layer go on with other probabilities."""
        Mediator.swap(self._location(layer), value)

    def __len__(self) -> int:
        """Number of layers."""
        return self.model.num_layers

    def print_source(self, layer: SupportsIndex = 0) -> None:
        """Print the line of the modelling code at which they are taken, and what is around it."""
        print(product_source(self._facts(layer)))

    def _location(self, layer: SupportsIndex) -> str:
        facts = self._facts(layer)
        self.model.require("attention")
        if not self.enabled:
            raise Unsupported(
                f"{self.model.name} forms no attention probabilities under {self.model.attention} attention.",
                'Call model.set_attention("eager") first, or load with enable_attention_probs=True.',
            )
        assert facts.core is not None
        return f"{self.model.envoy(facts.core).path}.{PROBABILITIES}"

    def _facts(self, layer: SupportsIndex) -> LayerAnatomy:
        anatomy, name = self.model.anatomy, self.model.name
        facts = anatomy.layers[layer_index(layer, anatomy, name)]
        require_part(facts, "attention", anatomy, name)
        if facts.product is None:
            raise Unsupported(f"layer {facts.index} of {name} forms no attention probabilities ({facts.kind}).")
        return facts


def product_source(layer: LayerAnatomy, context: int = 4) -> str:
    """The lines of the modelling code around the product of probabilities and values of a layer."""
    assert layer.core is not None
    assert layer.product is not None
    code, line = layer.product
    lines, first = inspect.getsourcelines(code)
    around = range(max(line - context, first), min(line + context + 1, first + len(lines)))
    shown = [f"{'-->' if number == line else '   '} {number:5} {lines[number - first].rstrip()}" for number in around]
    head = f"{layer.core.path}: {code.co_name} in {code.co_filename}, line {line}"
    return "\n".join([head, *shown])


class _Watched:
    """A forward that offers its attention probabilities to the traces that ask for them."""

    def __init__(self, forward: Any, path: str, interleaver: Interleaver) -> None:
        self._forward = forward
        self._prefix = f"{path}."
        self._location = f"{path}.{PROBABILITIES}"
        self._interleaver = weakref.ref(interleaver)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        interleaver = self._interleaver()
        if interleaver is None or not (interleaver.interleaving and interleaver.busy):
            return self._forward(*args, **kwargs)
        if not any(location.startswith(self._prefix) for location in interleaver.parked):
            interleaver.handle(self._location, None)  # counts this visit: a later step of a generation may ask
            return self._forward(*args, **kwargs)
        hidden = next(value for value in [*args, *kwargs.values()] if isinstance(value, Tensor) and value.ndim >= 3)
        serving = _Serving(interleaver, self._location, hidden.shape[0])
        with ProductWatch(hidden.shape[-2], serving.offer, ignore=_in_worker):
            return self._forward(*args, **kwargs)


class _Serving:
    """Offers the first product of one call to the trace."""

    def __init__(self, interleaver: Interleaver, location: str, batch: int) -> None:
        self._interleaver = interleaver
        self._location = location
        self._batch = batch
        self._done = False

    def offer(self, product: Product) -> Tensor | None:
        probabilities = product.probabilities
        if self._done or probabilities is None:
            return None
        self._done = True
        pattern = probabilities.reshape(self._batch, -1, *probabilities.shape[-2:])
        if torch.is_grad_enabled() and pattern.requires_grad:
            pattern = pattern.clone()  # the softmax keeps its result for the backward pass
        edited = self._interleaver.handle(self._location, pattern)
        return edited.to(probabilities).reshape(probabilities.shape)


def _in_worker() -> bool:
    """Whether the code that runs now is a trace's, not the model's."""
    return getattr(getcurrent(), "mediator", None) is not None
