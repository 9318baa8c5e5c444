"""The matrix products on either side of attention's softmax, found by following tensors.

Names of functions and variables in the modelling code change from release to release. What does not change is
that a product of queries and keys goes through a softmax, which gives a tensor (…, query, key), which is
cast, masked or thinned out, and then multiplies the values. A `ProductWatch` follows these tensors from
operation to operation and hands over every product before it is computed. An edit takes effect exactly there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parents[1])

_SOFTMAXES: frozenset[Any] = frozenset({functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax})
_OPERANDS: dict[Any, tuple[tuple[int, str], tuple[int, str]]] = {
    torch.matmul: ((0, "input"), (1, "other")),
    torch.bmm: ((0, "input"), (1, "mat2")),
    Tensor.matmul: ((0, "self"), (1, "other")),
    Tensor.bmm: ((0, "self"), (1, "mat2")),
    Tensor.__matmul__: ((0, "self"), (1, "other")),
    Tensor.__rmatmul__: ((1, "other"), (0, "self")),
    torch.baddbmm: ((1, "batch1"), (2, "batch2")),
    Tensor.baddbmm: ((1, "batch1"), (2, "batch2")),
    torch.einsum: ((1, ""), (2, "")),
}
"""Where the left and the right operand of a product are: position, and name when given by keyword."""

_FUSED = functional.scaled_dot_product_attention
_FUSED_OPERANDS = ((0, "query"), (1, "key"), (2, "value"))
_MASK = (3, "attn_mask")


@dataclass
class Product:
    """One product, about to be computed. Assigning an operand replaces it.

    Attributes:
        ordinal: How many products the watch saw before it; -1 for one of two dimensions, which works on one row or one
            token, so that their number differs from pass to pass.
        operands: Left and right operand; query, key and value where attention is one fused operation.
        fused: True for the fused operation, which never forms probabilities.
        mask: The fused operation's additive or boolean mask; None where none was given.
        einsum: True if an equation names the dimensions.
        probabilities: Index of the operand that has attention probabilities; None for any other product.
        scores: The ordinal of the product that went into the softmax of these probabilities.
    """

    ordinal: int
    operands: list[Tensor]
    fused: bool = False
    mask: Tensor | None = None
    einsum: bool = False
    probabilities: int | None = None
    scores: int | None = None

    @property
    def attends(self) -> bool:
        """True if values are weighted by attention here."""
        return self.fused or self.probabilities is not None

    def origin(self) -> tuple[CodeType, int]:
        """The code object and line that compute it; valid only during the callback."""
        frame = inspect.currentframe()
        assert frame is not None
        while frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, _HERE)):
            frame = frame.f_back
        return frame.f_code, frame.f_lineno


class ProductWatch(TorchFunctionMode):
    """While it is entered, hands over every product before it is computed.

    Args:
        length: Number of query positions of this forward pass: tells attention's softmax from a router's.
        on_product: Called with each product; it may assign other operands.
        ignore: When it returns true, operations are not looked at: they are not the model's.

    Attributes:
        count: How many products were seen, those of two dimensions aside.
    """

    def __init__(
        self,
        length: int,
        on_product: Callable[[Product], None],
        ignore: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.count = 0
        self._length = length
        self._on_product = on_product
        self._ignore = ignore
        self._products = _Followed()
        self._probabilities = _Followed()

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._ignore():
            return func(*args, **kwargs)
        if func is _FUSED:
            return self._multiply(func, args, kwargs, _FUSED_OPERANDS)
        if func in _OPERANDS:
            args = _flatten(args) if func is torch.einsum else args
            return self._multiply(func, args, kwargs, _OPERANDS[func])
        result = func(*args, **kwargs)
        if func in _SOFTMAXES:
            self._probabilities.add(result, self._products.find(args))
        elif isinstance(result, Tensor):  # most of what comes here asks for a shape or a dtype
            self._products.pass_on(args, result)
            self._probabilities.pass_on(args, result)
        return result

    def _multiply(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: Sequence[tuple[int, str]]
    ) -> Any:
        places = [position if position < len(args) else name for position, name in where]
        inputs: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        operands = [inputs[place] for place in places if isinstance(inputs.get(place), Tensor)]
        if len(operands) != len(places):
            return func(*args, **kwargs)
        product = self._describe(func, operands)
        self.count += product.ordinal >= 0
        place, name = _MASK
        masked = place if len(args) > place else name
        product.mask = inputs.get(masked) if product.fused else None
        self._on_product(product)
        inputs.update(zip(places, product.operands, strict=True))
        if product.fused:
            inputs[masked] = product.mask
            if product.operands[0].shape[1] == product.operands[1].shape[1]:
                inputs.pop("enable_gqa", None)
        result = func(
            *(inputs[place] for place in range(len(args))),
            **{name: inputs[name] for name in inputs if isinstance(name, str)},
        )
        if not product.attends:
            self._products.add(result, product.ordinal)
        return result

    def _describe(self, func: Any, operands: list[Tensor]) -> Product:
        ordinal = self.count if operands[0].ndim > 2 else -1
        product = Product(ordinal, operands, fused=func is _FUSED, einsum=func is torch.einsum)
        for place, operand in enumerate(operands):
            if not product.fused and operand in self._probabilities and self._is_pattern(operand):
                product.probabilities = place
                product.scores = self._probabilities.find((operand,))
        return product

    def _is_pattern(self, tensor: Tensor) -> bool:
        return tensor.ndim >= 3 and tensor.shape[-2] == self._length <= tensor.shape[-1]


class _Followed:
    """Tensors under observation, each with the ordinal of the product that it comes from.

    They are not kept alive: scores of a long prompt take more memory than the rest of its pass.
    """

    def __init__(self) -> None:
        self._ordinals = WeakTensorKeyDictionary()

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._ordinals

    def add(self, result: Any, ordinal: int | None) -> None:
        if isinstance(result, Tensor) and result.is_floating_point() and result.ndim >= 3:
            self._ordinals[result] = ordinal

    def find(self, args: Iterable[Any]) -> int | None:
        """The ordinal of the first of the arguments that is followed."""
        followed = self._first(args)
        return None if followed is None else self._ordinals[followed]

    def pass_on(self, args: Iterable[Any], result: Any) -> None:
        """Follow the result of an operation on something that is followed."""
        followed = self._first(args)
        if followed is not None:
            self.add(result, self._ordinals[followed])

    def _first(self, args: Iterable[Any]) -> Tensor | None:
        for item in args:
            if isinstance(item, list | tuple):
                found = self._first(item)
            else:
                found = item if isinstance(item, Tensor) and item in self._ordinals else None
            if found is not None:
                return found
        return None


def _flatten(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0], *args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else args
