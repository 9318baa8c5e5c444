"""Access to the queries, keys, values and probabilities inside an attention module.

A module's forward is watched only on request: by a trace, which gets each tensor at its own location, in order with the
module's other inputs and outputs, or by the taps of a hooked pass. Either may return a replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from greenlet import getcurrent
from jaxtyping import Float
from nnsight.intervention.interleaver import Interleaver
from nnsight.intervention.source import STATE, Controller, State
from torch import Tensor, nn

from nnterp_mcp.model.structure.attention_products import Product, ProductWatch

Quantity = Literal["queries", "keys", "values", "attention_probabilities"]
QUANTITIES: tuple[Quantity, ...] = ("queries", "keys", "values", "attention_probabilities")


def location(path: str, quantity: Quantity) -> str:
    """Where a trace finds a quantity of the attention module at a path."""
    return f"{path}.{quantity}"


Tap = Callable[[Tensor], Tensor]
"""Takes a quantity (batch, head, position, width) and returns it or a replacement."""


def watch(module: nn.Module, score_product: int | None) -> None:
    """Let traces and taps reach what happens inside an attention module.

    Args:
        module: The module that multiplies probabilities and values, already wrapped by nnsight.
        score_product: Which of its products is that of queries and keys; None when it cannot be told.
    """
    module.__dict__["forward"] = _Watched(module, module.__dict__[STATE], score_product)


def taps_of(module: nn.Module) -> dict[Quantity, Tap] | None:
    """The taps on the next call of a watched module, to be set and removed; None where it is not watched."""
    forward = module.__dict__.get("forward")
    return forward.taps if isinstance(forward, _Watched) else None


class _Watched(Controller):
    """nnsight's handoff of a module, and of the products inside it when a trace or a tap asks for them."""

    def __init__(self, module: nn.Module, state: State, score_product: int | None) -> None:
        super().__init__(module, state)
        self.taps: dict[Quantity, Tap] = {}
        self._score_product = score_product

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        interleaver, path, _ = self.state.active()
        if self.taps:
            return self._watched(_Offers(_Taps(self.taps), self._score_product), args, kwargs)
        if interleaver is None or path is None:
            return super().__call__(*args, **kwargs)
        trace = _Trace(interleaver, path)
        if any(place.startswith(f"{path}.") for place in interleaver.parked):
            result = self._watched(_Offers(trace, self._score_product), args, kwargs)
        else:
            result = super().__call__(*args, **kwargs)
        trace.count_visit()
        return result

    def _watched(self, offers: _Offers, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = _hidden(args, kwargs)
        offers.batch, offers.length = hidden.shape[0], hidden.shape[-2]
        with ProductWatch(hidden.shape[-2], offers.on_product, ignore=_in_worker):
            return super().__call__(*args, **kwargs)


class _Listener(Protocol):
    """Whoever quantities are offered to."""

    def wants(self, quantity: Quantity) -> bool:
        """True if a read of this quantity is pending."""
        ...

    def take(self, quantity: Quantity, tensor: Float[Tensor, "batch head position width"]) -> Tensor:
        """The tensor, or its replacement."""
        ...


class _Taps:
    def __init__(self, taps: dict[Quantity, Tap]) -> None:
        self._taps = taps

    def wants(self, quantity: Quantity) -> bool:
        return quantity in self._taps

    def take(self, quantity: Quantity, tensor: Tensor) -> Tensor:
        return self._taps.pop(quantity)(tensor)


class _Trace:
    """A trace, which waits for one quantity at a time."""

    def __init__(self, interleaver: Interleaver, path: str) -> None:
        self._interleaver = interleaver
        self._path = path
        self._made: set[Quantity] = set()

    def wants(self, quantity: Quantity) -> bool:
        return quantity not in self._made and location(self._path, quantity) in self._interleaver.parked

    def take(self, quantity: Quantity, tensor: Tensor) -> Tensor:
        self._made.add(quantity)
        # A copy, for the tensor itself may be the cache's, or be needed unchanged for the backward pass.
        return self._interleaver.handle(location(self._path, quantity), tensor.clone())

    def count_visit(self) -> None:
        """Counts quantities that were not read as passed: a later decode step may ask for them."""
        counts = self._interleaver.counts
        for place in (location(self._path, quantity) for quantity in QUANTITIES if quantity not in self._made):
            counts[place] = counts.get(place, 0) + 1


class _Offers:
    def __init__(self, listener: _Listener, score_product: int | None) -> None:
        self.batch = self.length = 1
        self._listener = listener
        self._score_product = score_product
        self._weighed: tuple[Tensor, Tensor] | None = None

    def on_product(self, product: Product) -> None:
        if product.fused:
            self._offer_fused(product)
        elif product.probabilities is not None:
            self._offer_weighing(product, product.probabilities)
        elif product.ordinal == self._score_product and not product.einsum:
            self._offer_scores(product)

    def _offer_fused(self, product: Product) -> None:
        if any(self._listener.wants(quantity) for quantity in QUANTITIES):
            _unpack(product, self.length)
            query, key, value = product.operands
            repeats = query.shape[1] // key.shape[1]
            key, value = (item.repeat_interleave(repeats, dim=1) if repeats > 1 else item for item in (key, value))
            offered = self._in_turn({"queries": query, "keys": key, "values": value})
            product.operands = [offered["queries"], offered["keys"], offered["values"]]

    def _offer_scores(self, product: Product) -> None:
        query, key = product.operands
        offered = self._in_turn({"queries": query, "keys": _for_each_head(key.transpose(-1, -2), query)})
        product.operands = [offered["queries"], offered["keys"].transpose(-1, -2)]

    def _offer_weighing(self, product: Product, place: int) -> None:
        pattern, other = product.operands[place], product.operands[1 - place]
        if self._weighed is not None:
            before, after = self._weighed
            if before.shape == pattern.shape and torch.equal(before, pattern):
                product.operands[place] = after  # the same probabilities weigh further values
            return
        items: dict[Quantity, Tensor] = {"attention_probabilities": pattern}
        if not product.einsum:
            items["values"] = _for_each_head(other, pattern)
        offered = self._in_turn(items)
        self._weighed = (pattern, offered["attention_probabilities"])
        product.operands[place] = offered["attention_probabilities"]
        product.operands[1 - place] = offered.get("values", other)

    def _in_turn(self, items: dict[Quantity, Tensor]) -> dict[Quantity, Tensor]:
        """Offer several tensors, first the one for which a trace is waiting already."""
        order = sorted(items, key=lambda quantity: not self._listener.wants(quantity))
        return {quantity: self._offer(quantity, items[quantity]) for quantity in order}

    def _offer(self, quantity: Quantity, tensor: Tensor) -> Tensor:
        if not self._listener.wants(quantity):
            return tensor
        by_head = tensor.reshape(self.batch, -1, *tensor.shape[-2:])
        edited = self._listener.take(quantity, by_head)
        return tensor if edited is by_head else edited.to(tensor).reshape(tensor.shape)


def _for_each_head(shared: Tensor, like: Tensor) -> Tensor:
    """Keys or values expanded to one entry per head, where the product broadcasts over heads."""
    if shared.ndim != like.ndim:
        return shared
    outer = torch.broadcast_shapes(shared.shape[:-2], like.shape[:-2])
    return shared.expand(*outer, *shared.shape[-2:])


def _unpack(product: Product, length: int) -> None:
    """Unpacks heads from the position dimension.

    transformers packs the heads that share keys and values there when a single token is computed under a mask.
    """
    query = product.operands[0]
    if query.shape[2] == length or length != 1:
        return
    product.operands[0] = query.reshape(query.shape[0], -1, 1, query.shape[3])
    if product.mask is not None and product.mask.shape[1] > 1:
        mask = product.mask
        product.mask = mask.reshape(mask.shape[0], -1, 1, mask.shape[3])


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(item for item in [*args, *kwargs.values()] if isinstance(item, Tensor) and item.ndim >= 3)


def _in_worker() -> bool:
    """True while a trace's own code runs, not the model's."""
    return getattr(getcurrent(), "mediator", None) is not None
