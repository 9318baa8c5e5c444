"""Reading and assigning what flows through a layer, inside a trace."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, SupportsIndex, cast

from jaxtyping import Float
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.eproperty import eproperty
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.structure.anatomy import Anatomy, LayerAnatomy, Site
from nnterp_mcp.model.traced_tensor import TracedTensor

Part = Literal[
    "block",
    "attention",
    "mlp",
    "mlp_projection",
    "attention_raw",
    "mlp_raw",
    "attention_contribution",
    "mlp_contribution",
]
Side = Literal["input", "output"]

_NAMES: dict[str, str] = {
    "attention": "attention",
    "attention_raw": "attention",
    "attention_contribution": "attention",
    "mlp": "MLP module",
    "mlp_projection": "MLP of one hidden layer",
    "mlp_raw": "MLP module",
    "mlp_contribution": "MLP module",
}


class Named(Protocol):
    """A wrapped model whose modules are known under the standard names."""

    name: str
    anatomy: Anatomy

    def envoy(self, site: Site) -> Envoy:
        """The nnsight wrapper of a module."""
        ...


def layer_index(layer: SupportsIndex, anatomy: Anatomy, name: str) -> int:
    """A layer's number, counted from 0; negative numbers count from the last layer.

    Raises:
        InvalidRequest: There is no such layer.
    """
    try:
        index = operator.index(layer)
    except TypeError:
        raise InvalidRequest(f"layer {layer!r} is not a number: {_range(anatomy, name)}") from None
    if not -anatomy.num_layers <= index < anatomy.num_layers:
        raise InvalidRequest(f"layer {index} does not exist: {_range(anatomy, name)}")
    return index % anatomy.num_layers


def require_part(layer: LayerAnatomy, part: Part, anatomy: Anatomy, name: str) -> Site:
    """The site of a part of a layer.

    Raises:
        Unsupported: The layer lacks it, or carries several residual streams.
    """
    if anatomy.faults:
        raise Unsupported(f"the layers of {name} cannot be read under the standard names: {anatomy.faults[0]}.")
    site: Site | None = getattr(layer, part)
    if site is None and layer.runs:
        having = [str(other.index) for other in anatomy.layers if getattr(other, part) is not None]
        others = f"the layers that have one are {', '.join(having)}." if having else "no layer of it has one."
        kind = f" (it is a {layer.kind} layer)" if layer.kind and not layer.note else layer.note and f" ({layer.note})"
        raise Unsupported(f"layer {layer.index} of {name} has no {_NAMES[part]}{kind}: {others}")
    if not layer.runs:
        running = [str(other.index) for other in anatomy.layers if other.runs]
        raise Unsupported(
            f"layer {layer.index} of {name} does not run on text alone ({layer.block.path}): "
            f"the layers that do are {', '.join(running)}."
        )
    assert site is not None
    return site


def _range(anatomy: Anatomy, name: str) -> str:
    return f"{name} has layers 0 to {anatomy.num_layers - 1}."


def read_output(envoy: Envoy, site: Site) -> Float[Tensor, "batch position hidden"]:
    """The hidden state that a module returned; a copy where the model itself writes to it or multiplies it later."""
    apart = site.mutated or site.factor != 1
    host: Any = _Kept(envoy.path, site) if apart else envoy
    return host.state if apart else site.read_output(host.output)


def assign_output(envoy: Any, site: Site, hidden: Float[Tensor, "batch position hidden"]) -> None:
    """Replace the hidden state in a module's output; its other elements stay."""
    plain = site.exit is None and site.factor == 1
    envoy.output = hidden if plain else site.write_output(envoy.output, hidden)


@dataclass(frozen=True)
class _Kept:
    """A copy of a module's hidden state, whose edits still reach the model."""

    path: str
    site: Site

    @eproperty(key="output")
    def state(self, value: Any) -> Any:
        return self.site.read_output(value).clone()

    @state.transform
    def state(self, view: Tensor, raw: Any) -> Any:
        return self.site.write_output(raw, view.clone())


@dataclass(frozen=True)
class ModuleList:
    """One kind of module in every layer: `model.attentions[3]`."""

    model: Named
    part: Part

    def __getitem__(self, layer: SupportsIndex) -> Envoy:
        """The module of one layer, as nnsight wraps it."""
        anatomy, name = self.model.anatomy, self.model.name
        facts = anatomy.layers[layer_index(layer, anatomy, name)]
        return self.model.envoy(require_part(facts, self.part, anatomy, name))

    def __setitem__(self, layer: SupportsIndex, value: Any) -> None:
        """Raises: modules cannot be assigned.

        Raises:
            InvalidRequest: Always.
        """
        raise InvalidRequest(
            f"the {_NAMES[self.part]} of layer {layer} cannot be assigned to.",
            f"Assign what goes into or comes out of it: {self.part}s_input, {self.part}s_output.",
        )

    def get_module(self, layer: SupportsIndex) -> Envoy:
        """The same as indexing."""
        return self[layer]

    def __len__(self) -> int:
        """Number of layers."""
        return self.model.anatomy.num_layers


@dataclass(frozen=True)
class StateList:
    """The hidden states on one side of one part of every layer: `model.layers_output[3]`.

    Reads and assignments work inside a trace only, in the order in which the model runs.
    """

    model: Named
    part: Part
    side: Side

    def __getitem__(self, layer: SupportsIndex) -> Float[TracedTensor, "batch position hidden"]:
        """The hidden states of one layer, for every row and position (padding included)."""
        site = self.site(layer)
        envoy: Any = self.model.envoy(site)
        return cast("TracedTensor", site.read_input(envoy.inputs) if self.side == "input" else read_output(envoy, site))

    def __setitem__(self, layer: SupportsIndex, hidden: Float[Tensor, "batch position hidden"]) -> None:
        """Replace the hidden states of one layer; other inputs or outputs of the module stay."""
        site = self.site(layer)
        envoy: Any = self.model.envoy(site)
        if self.side == "input":
            envoy.inputs = site.write_input(envoy.inputs, hidden)
        else:
            assign_output(envoy, site, hidden)

    def __call__(self, layer: SupportsIndex) -> Float[TracedTensor, "batch position hidden"]:
        """The same as indexing."""
        return self[layer]

    def __len__(self) -> int:
        """Number of layers."""
        return self.model.anatomy.num_layers

    def get_module(self, layer: SupportsIndex) -> Envoy:
        """The module of one layer, as nnsight wraps it."""
        return self.model.envoy(self.site(layer))

    def site(self, layer: SupportsIndex) -> Site:
        """The module of one layer, and which of its inputs or outputs the states are.

        Raises:
            InvalidRequest: There is no such layer.
            Unsupported: The layer lacks the part.
        """
        anatomy, name = self.model.anatomy, self.model.name
        facts = anatomy.layers[layer_index(layer, anatomy, name)]
        return require_part(facts, self.part, anatomy, name)
