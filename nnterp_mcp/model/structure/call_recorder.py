"""Records one short forward pass with plain hooks: module calls in order, their inputs, and attention products."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.structure.attention_products import Product, ProductWatch

PROBE_TOKENS = 5
"""Length of the probe: prime, and smaller than any width, so that a dimension is recognised by its size."""


@dataclass
class SeenProduct:
    """A product of the pass, and the code and line that computed it."""

    product: Product
    origin: tuple[CodeType, int]


@dataclass
class ModuleCall:
    """One call of one module.

    Attributes:
        module: The module that ran.
        parent: The call inside which it ran; None for the model itself.
        start: Its place in the order in which calls began.
        end: Its place in the order in which calls began and ended; -1 while it runs.
        args: Its positional inputs.
        kwargs: Its keyword inputs.
        output: What it returned.
        products: The products seen directly inside it, in order.
        first_product: How many products the whole pass had seen before it.
        version: How often its output had been written to when it returned.
        mutated: True if the model wrote to its output afterwards.
    """

    module: nn.Module
    parent: ModuleCall | None
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    end: int = -1
    products: list[SeenProduct] = field(default_factory=list)
    first_product: int = 0
    version: int = 0
    mutated: bool = False

    @property
    def attending(self) -> SeenProduct | None:
        """The first product directly inside it that weighs values by attention."""
        return next((seen for seen in self.products if seen.product.attends), None)

    @cached_property
    def has_matrices(self) -> bool:
        """True if a weight of the module, or of one inside it, has several dimensions."""
        return any(weight.ndim > 1 for weight in self.module.parameters())

    @cached_property
    def tensors(self) -> list[tuple[int | str, Tensor]]:
        """Its floating-point inputs, each with its position or keyword."""
        items: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        return [(place, value) for place, value in items if isinstance(value, Tensor) and value.is_floating_point()]

    @property
    def is_linear(self) -> bool:
        """True for a matrix without modules inside, applied to one tensor."""
        return self.has_matrices and not any(True for _ in self.module.children()) and len(self.tensors) == 1

    def within(self, module: nn.Module) -> bool:
        """True if this is a call of `module` or ran inside one."""
        return any(call.module is module for call in self.lineage())

    def lineage(self) -> Iterator[ModuleCall]:
        """This call, the one that it ran in, and so on up to the model's."""
        call: ModuleCall | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass
class Tape:
    """Everything that one forward pass called."""

    input_ids: Int[Tensor, "batch position"]
    calls: list[ModuleCall]
    logits: Float[Tensor, "batch position vocabulary"]
    mixing: dict[tuple[type, ...], bool] = field(default_factory=dict)
    """Results of the test for mixing positions, by kind of module."""

    def of(self, module: nn.Module) -> ModuleCall | None:
        """The last call of a module, or None where it did not run."""
        return self._last.get(id(module))

    @cached_property
    def _last(self) -> dict[int, ModuleCall]:
        return {id(call.module): call for call in self.calls}

    def inside(self, outer: ModuleCall) -> list[ModuleCall]:
        """The calls made while `outer` ran, in the order in which they began."""
        return [call for call in self.calls if outer.start < call.start and call.end < outer.end]


def probe_ids(model: nn.Module, length: int = PROBE_TOKENS) -> Int[Tensor, "1 position"]:
    """Distinct, ordinary token ids on the model's first device."""
    embedding = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise Unsupported(f"{type(model).__name__} has no single token embedding: it does not read plain text.")
    rows = int(embedding.weight.shape[0])
    ids = torch.arange(1, length + 1) * max(rows // (length + 3), 1)
    return (ids % rows).unsqueeze(0).to(input_device(model))


def other_ids(model: nn.Module, ids: Int[Tensor, "*row position"], at: int | slice) -> Int[Tensor, "*row position"]:
    """The same ids with another one at a position, unless the model knows a single one."""
    embedding: nn.Module = model.get_input_embeddings()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    changed = ids.clone()
    changed[..., at] = (changed[..., at] + 1) % embedding.weight.shape[0]  # pyright: ignore
    return changed


@torch.no_grad()
def probe(model: nn.Module) -> Tape:
    """Run the model once on a few tokens and record every call.

    Args:
        model: A Hugging Face causal LM, wrapped or not; nothing in it is changed.

    Returns:
        The tape, which references activations: discard it after use.
    """
    ids = probe_ids(model)
    calls: list[ModuleCall] = []
    with _recorded(model, calls, ids.shape[1]):
        output = model(input_ids=ids, use_cache=False)
    for call in calls:
        call.mutated = _version(call.output) != call.version
    return Tape(ids, calls, output.logits)


def first_state(value: Any) -> tuple[int | None, Tensor | None]:
    """The first floating-point tensor in what a module returned, and its place when there are several items."""
    if isinstance(value, Tensor):
        return None, value
    if isinstance(value, tuple | list):
        for place, item in enumerate(value):
            if isinstance(item, Tensor) and item.is_floating_point():
                return place, item
    return None, None


def _version(output: Any) -> int:
    state = first_state(output)[1]
    return 0 if state is None or state.is_inference() else state._version


@contextmanager
def _recorded(model: nn.Module, calls: list[ModuleCall], length: int) -> Generator[None]:
    open_calls: list[ModuleCall] = []
    clock = iter(range(1 << 62))

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parent = open_calls[-1] if open_calls else None
        call = ModuleCall(module, parent, next(clock), args, kwargs, first_product=watch.count)
        calls.append(call)
        open_calls.append(call)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = open_calls.pop()
        call.output, call.end, call.version = output, next(clock), _version(output)

    def see(product: Product) -> None:
        if open_calls:
            open_calls[-1].products.append(SeenProduct(product, product.origin()))

    watch = ProductWatch(length, on_product=see)
    with ExitStack() as stack, watch:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its token ids; an offloaded embedding says itself where it computes."""
    embedding: nn.Module = model.get_input_embeddings()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    weight = next(embedding.parameters(), None)
    placed: Any = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if placed is not None and (weight is None or weight.device.type == "meta"):
        return torch.device(placed)
    return torch.device("cpu") if weight is None else weight.device
