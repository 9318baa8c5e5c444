"""Places in a running model: reading and assigning any site of any layer, in the order in which the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.accessors import Part, require_part
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import LayerAnatomy
from nnterp_mcp.request.sites import FACTS, SITES, Site

_PARTS: dict[Site, Part] = {
    "layers_input": "block",
    "layers_output": "block",
    "attentions_raw_output": "attention_raw",
    "attentions_output": "attention_contribution",
    "mlps_input": "mlp",
    "neurons": "mlp_projection",
    "mlps_raw_output": "mlp_raw",
    "mlps_output": "mlp_contribution",
}

_ACCESSORS: dict[Site, str] = {
    "attentions_raw_output": "attentions_output",
    "attentions_output": "attentions_contribution",
    "mlps_raw_output": "mlps_output",
    "mlps_output": "mlps_contribution",
}
"""The model's accessors of other names: those that nnterp has keep nnterp's meaning."""

_INSIDE_ATTENTION: dict[Site, Callable[[LayerAnatomy], bool]] = {
    "queries": lambda facts: facts.score_product is not None,
    "keys": lambda facts: facts.score_product is not None,
    "values": lambda facts: facts.values_by_head,
    "attention_probabilities": lambda facts: facts.product is not None,
    "heads_output": lambda facts: facts.output_projection is not None,
}
"""True where the modelling code of a layer exposes the states of a site."""


class Place(NamedTuple):
    """A site of a layer; `token_embeddings` has no layer."""

    site: Site
    layer: int | None = None

    @property
    def turn(self) -> tuple[int, int]:
        """When it comes in a forward pass, to sort by."""
        return (-1 if self.layer is None else self.layer, SITES.index(self.site))

    def __str__(self) -> str:
        """As errors and notes name it."""
        return self.site if self.layer is None else f"{self.site} of layer {self.layer}"


def in_order(places: Iterable[Place]) -> list[Place]:
    """Places in the order in which the model comes to them, each once."""
    return sorted(set(places), key=lambda place: place.turn)


def fetch(model: StandardizedTransformer, place: Place) -> Tensor:
    """The states at a hook point, inside a trace, in the model's own layout."""
    if place.layer is None:
        return model.token_embeddings
    return accessor(model, place)[place.layer]


def assign(model: StandardizedTransformer, place: Place, value: Tensor) -> None:
    """Lets the model go on with other states at a place, inside a trace."""
    if place.layer is None:
        model.token_embeddings = value
    else:
        accessor(model, place)[place.layer] = value


def accessor(model: StandardizedTransformer, place: Place) -> Any:
    """The model's own accessor of a site, to be indexed by layers."""
    return getattr(model, _ACCESSORS.get(place.site, place.site))


def by_position(value: Tensor, site: Site) -> Float[Tensor, "batch position *head width"]:
    """States with the position as their second dimension; its own inverse."""
    return value.transpose(1, 2) if FACTS[site].heads_first else value


def known_width(model: StandardizedTransformer, place: Place) -> int | None:
    """The width of the states at a place; None where only a pass shows it."""
    if place.site == "neurons" and place.layer is not None:
        return model.anatomy.layers[place.layer].num_neurons
    return model.hidden_size if FACTS[place.site].in_stream else None


def require_place(model: StandardizedTransformer, place: Place) -> None:
    """Refuses a place that this model does not have.

    Raises:
        Unsupported: The layer has no such site, or the check at load found that it cannot be read or edited.
    """
    if place.layer is None:
        return
    model.require(place.site)
    facts = model.anatomy.layers[place.layer]
    require_part(facts, _PARTS.get(place.site, "attention"), model.anatomy, model.name)
    shows = _INSIDE_ATTENTION.get(place.site)
    if shows is not None and not shows(facts):
        having = [str(other.index) for other in model.anatomy.layers if shows(other)]
        others = f"those of layers {', '.join(having)} can." if having else "nor can those of any other layer."
        raise Unsupported(f"the {place} of {model.name} cannot be told apart: {others}")
    if place.site == "attention_probabilities":
        model.require("attention")
        model.require("attention_edit")
