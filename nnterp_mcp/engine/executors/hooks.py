"""Plain PyTorch hooks on the modules that a pass touches, and nothing on the others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnterp_mcp.engine.hook_points import Place, accessor
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.accessors import Side, StateList
from nnterp_mcp.model.attention import AttentionProbabilities, HeadsOutput, HeadStates
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import Inputs, Site
from nnterp_mcp.model.structure.attention_taps import Quantity, taps_of

Visit = Callable[[Place, Tensor], Tensor]
"""Given a place and the states there, returns those that the model continues with."""


class PassEnded(Exception):
    """Raised through the model's own code when all that was wanted of a pass is there."""


@dataclass(frozen=True)
class Port:
    """One side of a module, where the states of a place pass.

    Attributes:
        site: The module, and which of its inputs or outputs the states are.
        side: The side.
        heads: How many heads the states are split into; 0 where they are not.
    """

    site: Site
    side: Side
    heads: int = 0

    @property
    def key(self) -> tuple[int, str]:
        """Identifies the port."""
        return id(self.site.module), self.side

    def read(self, passed: Any) -> Tensor:
        """The states in what goes into the module, or comes out of it; a copy where the model writes to them later."""
        states = self.site.read_input(passed) if self.side == "input" else self.site.read_output(passed)
        if self.side == "output" and self.site.mutated:
            states = states.clone()
        return states.unflatten(-1, (self.heads, -1)) if self.heads else states

    def write(self, passed: Any, states: Tensor) -> Any:
        """The module's inputs or output, with other states in them."""
        states = states.flatten(-2) if self.heads else states
        return self.site.write_input(passed, states) if self.side == "input" else self.site.write_output(passed, states)


@dataclass(frozen=True)
class TappedPort:
    """A quantity inside an attention module's code.

    Attributes:
        module: The module that computes attention.
        quantity: The quantity.
    """

    module: nn.Module
    quantity: Quantity

    @property
    def key(self) -> tuple[int, str]:
        """Identifies the port."""
        return id(self.module), self.quantity


def find_port(model: StandardizedTransformer, place: Place) -> Port | TappedPort | None:
    """Where the states of a place pass; None where a `RenameConfig` names an operation of its own for it.

    Raises:
        Unsupported: The model does not have this place.
    """
    if place.layer is None:
        return Port(model.anatomy.embed_tokens, "output")
    states = accessor(model, place)
    if isinstance(states, StateList):
        return Port(states.site(place.layer), states.side)
    if isinstance(states, HeadsOutput):
        site, heads = states.projection(place.layer)
        return Port(site, "input", heads)
    if isinstance(states, HeadStates | AttentionProbabilities):
        core = states.core(place.layer)
        return None if core is None or taps_of(core.module) is None else TappedPort(core.module, states.quantity)
    return None


@contextmanager
def hooked(ports: Mapping[Place, Port | TappedPort], visit: Visit, *, stop: bool) -> Generator[None]:
    """While this lasts, the model's next forward pass goes past a visitor.

    Each place is visited once, the first time that its module runs; what a visit itself runs of the model is not seen.

    Args:
        ports: The places, and where their states pass.
        visit: Sees the states of each place.
        stop: End the pass with `PassEnded` once every place was visited.

    Raises:
        Unsupported: A module did not run.
    """
    hooks = _Hooks(ports, visit, stop)
    with ExitStack() as stack:
        for place, port in ports.items():
            stack.callback(hooks.put(place, port))
        yield
    if hooks.waiting:
        missing = ", ".join(map(str, sorted(hooks.waiting, key=lambda place: place.turn)))
        raise Unsupported(f"nothing passed at the {missing} in this forward pass: the module did not run.")


@contextmanager
def replaced_layers(model: StandardizedTransformer, layers: Iterable[int]) -> Generator[None]:
    """While this lasts, layers return their input and compute nothing.

    Args:
        layers: The layers; none whose other outputs are needed.
    """

    def return_input(block: Site) -> Callable[..., Any]:
        return lambda *args, **kwargs: block.make_output(block.read_input((args, kwargs)))

    with ExitStack() as stack:
        for layer in layers:
            block = model.anatomy.layers[layer].block
            before = vars(block.module).get("forward")
            block.module.forward = return_input(block)
            stack.callback(_restore_forward, block.module, before)
        yield


def _restore_forward(module: nn.Module, before: Callable[..., Any] | None) -> None:
    if before is None:
        del module.forward
    else:
        module.forward = before


class _Hooks:
    def __init__(self, ports: Mapping[Place, Port | TappedPort], visit: Visit, stop: bool) -> None:
        self._visit = visit
        self._stop = stop
        self.waiting = set(ports)
        self._visiting = False

    def put(self, place: Place, port: Port | TappedPort) -> Callable[[], object]:
        """Sets the hook of a place, and returns what removes it."""
        if isinstance(port, TappedPort):
            return self._tap(place, port)

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
            return self._pass(place, port, (args, kwargs))

        def after(module: Any, args: Any, output: Any) -> Any:
            return self._pass(place, port, output)

        if port.side == "input":
            return port.site.module.register_forward_pre_hook(before, with_kwargs=True).remove
        return port.site.module.register_forward_hook(after).remove

    def _tap(self, place: Place, port: TappedPort) -> Callable[[], object]:
        taps = taps_of(port.module)
        assert taps is not None
        taps[port.quantity] = lambda states: self._see(place, states)
        return lambda: taps.pop(port.quantity, None)

    def _pass(self, place: Place, port: Port, passed: Any) -> Any:
        """The inputs or output with the visitor's changes; None where nothing changes."""
        if self._visiting or place not in self.waiting:
            return None
        came = port.read(passed)
        states = self._see(place, came)
        return None if states is came else port.write(passed, states)

    def _see(self, place: Place, came: Tensor) -> Tensor:
        self.waiting.remove(place)
        self._visiting = True
        try:
            states = self._visit(place, came)
        finally:
            self._visiting = False
        if self._stop and not self.waiting:
            raise PassEnded
        return states
