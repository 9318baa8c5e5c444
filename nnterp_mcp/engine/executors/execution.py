"""Runs a forward pass past a visitor: by plain PyTorch hooks where its places allow it, else by an nnsight trace.

A visitor names the places at which it wants to see the states, and says what the model continues with there. Hooks cost
what the modules that they are on cost; a trace hands over every module of the model, and reaches into a module's code.
What a visitor sees and changes is the same under both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

import nnsight
from nnsight.modeling.processing import ROW_FIELDS, supply_position_ids
from torch import Tensor, nn
from transformers import Cache

from nnterp_mcp.engine.executors.hooks import PassEnded, Port, TappedPort, find_port, hooked, replaced_layers
from nnterp_mcp.engine.hook_points import Place, assign, fetch, in_order
from nnterp_mcp.model.standardized import StandardizedTransformer

PickLogits = Callable[[Tensor], Tensor]
"""Takes what is wanted of the logits (row, column, vocabulary)."""


class Visitor(Protocol):
    """Sees the states at some places of one forward pass."""

    @property
    def places(self) -> Sequence[Place]:
        """The places, in the order in which the model comes to them."""
        ...

    @property
    def skipped(self) -> Collection[int]:
        """Layers whose output is their input, whatever they compute."""
        ...

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """The states that the model continues with: the very tensor that came where nothing changes."""
        ...


class Reading:
    """Reads places and changes nothing.

    Args:
        reads: What to make of the states at each place; they are not kept themselves.

    Attributes:
        taken: What was made of them.
    """

    skipped: Collection[int] = ()

    def __init__(self, reads: Mapping[Place, Callable[[Tensor], Any]]) -> None:
        self.places = in_order(reads)
        self.taken: dict[Place, Any] = {}
        self._reads = reads

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Reads one place."""
        self.taken[place] = self._reads[place](value)
        return value


def last_column(logits: Tensor) -> Tensor:
    """The logits in the last column of each row, in float32."""
    return logits[:, -1].float()


def execute(
    model: StandardizedTransformer, inputs: dict[str, Any], visitor: Visitor, pick: PickLogits | None = None
) -> Tensor | None:
    """Runs a forward pass past a visitor.

    Args:
        model: The model, with the attention implementation that the places need.
        inputs: The arguments of its forward pass.
        pick: What to take of the model's logits. Without it the pass ends at the visitor's last place.

    Returns:
        The logits that were taken, if any were asked for.

    Raises:
        Unsupported: The model does not have one of the places.
    """
    ports = find_ports(model, visitor.places)
    return (
        run_traced(model, inputs, visitor, pick) if ports is None else run_hooked(model, inputs, visitor, ports, pick)
    )


def find_ports(model: StandardizedTransformer, places: Sequence[Place]) -> dict[Place, Port | TappedPort] | None:
    """Where hooks find the states of the places; None where hooks cannot.

    A place may be an operation that a `RenameConfig` names, and a module that stands for two layers is called twice.

    Raises:
        Unsupported: The model does not have one of the places.
    """
    ports = {place: find_port(model, place) for place in places}
    found = {place: port for place, port in ports.items() if port is not None}
    sides = {port.key for port in found.values()}
    return found if len(found) == len(ports) == len(sides) else None


def run_hooked(
    model: StandardizedTransformer,
    inputs: dict[str, Any],
    visitor: Visitor,
    ports: Mapping[Place, Port | TappedPort],
    pick: PickLogits | None,
) -> Tensor | None:
    """`execute` by hooks on the modules of these ports."""
    resting = layers_to_rest(model, inputs, visitor)
    hooks = hooked(ports, visitor.visit, stop=pick is None)
    with replaced_layers(model, resting), hooks, suppress(PassEnded), _contiguous_head(model):
        output = model.module(**_positioned(model, inputs))
        return None if pick is None else pick(output.logits)
    return None


def layers_to_rest(model: StandardizedTransformer, inputs: Mapping[str, Any], visitor: Visitor) -> list[int]:
    """The skipped layers that need not run.

    A layer runs where something inside it is read or edited, where later layers need more of it than its states, and
    where later passes go on from its keys and values.
    """
    cache = next((value for value in inputs.values() if isinstance(value, Cache)), None)
    if cache is not None and getattr(cache, "goes_on", True):
        return []
    inside = {place.layer for place in visitor.places if place.site not in ("layers_input", "layers_output")}
    layers = [model.anatomy.layers[index] for index in sorted(set(visitor.skipped) - inside)]
    return [layer.index for layer in layers if layer.runs and not layer.block.carries]


def run_traced(
    model: StandardizedTransformer, inputs: dict[str, Any], visitor: Visitor, pick: PickLogits | None
) -> Tensor | None:
    """`execute` by an nnsight trace."""
    return _trace_until(model, inputs, visitor) if pick is None else _trace(model, inputs, visitor, pick)


def _positioned(model: StandardizedTransformer, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs as a trace hands them on: rows that are padded on the left count from their first token."""
    rows = {name: value for name, value in inputs.items() if name in ROW_FIELDS}
    supply_position_ids(model, rows)
    return {**inputs, **rows}


def _trace_until(model: StandardizedTransformer, inputs: dict[str, Any], visitor: Visitor) -> None:
    with model.trace(**inputs) as tracer:
        _visit_all(model, visitor)
        tracer.stop()


def _trace(model: StandardizedTransformer, inputs: dict[str, Any], visitor: Visitor, pick: PickLogits) -> Tensor:
    with _contiguous_head(model), model.trace(**inputs):
        _visit_all(model, visitor)
        logits = nnsight.save(pick(model.logits))
    return logits  # noqa: RET504 - the trace ends before


def _visit_all(model: StandardizedTransformer, visitor: Visitor) -> None:
    """Every place in turn, inside a trace."""
    for place in visitor.places:
        came = fetch(model, place)
        states = visitor.visit(place, came)
        if states is not came:
            assign(model, place, states)


def _contiguous_head(model: StandardizedTransformer) -> AbstractContextManager[object]:
    """While this lasts, the head reads contiguous copies.

    Of the slice that transformers hands it, PyTorch multiplies each row by itself, which takes ten times as long.
    """
    head = model.anatomy.lm_head
    return nullcontext() if head is None else head.module.register_forward_pre_hook(_make_contiguous)


def _make_contiguous(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(item.contiguous() if isinstance(item, Tensor) else item for item in args)
