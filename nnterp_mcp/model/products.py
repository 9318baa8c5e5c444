"""Where attention happens: the product of probabilities and values, found by following the softmax's result.

Names of functions and variables in the modelling code change from release to release. What does not change is
that some softmax gives a tensor (…, query, key), which is cast, masked or thinned out, and then multiplies
the values. A `ProductWatch` follows that tensor from operation to operation and hands it over at the product,
where an edit takes effect exactly as if the softmax had given it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)

SOFTMAXES: frozenset[Any] = frozenset({functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax})
PRODUCTS: frozenset[Any] = frozenset(
    {
        torch.matmul,
        torch.bmm,
        torch.baddbmm,
        torch.einsum,
        Tensor.matmul,
        Tensor.bmm,
        Tensor.__matmul__,
        Tensor.__rmatmul__,
    }
)
FUSED: frozenset[Any] = frozenset({functional.scaled_dot_product_attention})


@dataclass(frozen=True)
class Product:
    """One product of attention probabilities and values.

    Attributes:
        probabilities: The probabilities as they multiply the values; None where the product is fused with the
            softmax and they are never formed.
        values: The other operand.
    """

    probabilities: Float[Tensor, "... query key"] | None
    values: Tensor | None = None

    def origin(self) -> tuple[CodeType, int]:
        """The code that computes it, and the line; to be asked while the product is handed over."""
        frame = inspect.currentframe()
        assert frame is not None
        while frame.f_back is not None and _is_machinery(frame.f_code.co_filename):
            frame = frame.f_back
        return frame.f_code, frame.f_lineno


class ProductWatch(TorchFunctionMode):
    """While it is entered, hands over every product of attention probabilities and values.

    Args:
        length: Number of query positions of this forward pass: tells attention's softmax from a router's.
        on_product: Called with each product just before it is computed. A tensor that it returns replaces the
            probabilities.
        ignore: When it returns true, operations are not looked at: they are not the model's.
    """

    def __init__(
        self,
        length: int,
        on_product: Callable[[Product], Tensor | None],
        ignore: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._length = length
        self._on_product = on_product
        self._ignore = ignore
        self._followed: dict[int, Tensor] = {}

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
        if func in FUSED:
            self._on_product(Product(None))
            return func(*args, **kwargs)
        if func in PRODUCTS:
            args = self._multiply(args)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SOFTMAXES or self._is_followed(args):
            self._follow(result)
        return result

    def _multiply(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for place, operand in enumerate(args):
            if isinstance(operand, list | tuple) and self._is_followed(operand):
                return (*args[:place], list(self._multiply(tuple(operand))), *args[place + 1 :])
            if isinstance(operand, Tensor) and self._is_pattern(operand):
                replacement = self._on_product(Product(operand, _other(args, place)))
                if replacement is not None:
                    return (*args[:place], replacement, *args[place + 1 :])
        return args

    def _is_pattern(self, tensor: Tensor) -> bool:
        if id(tensor) not in self._followed:
            return False
        return tensor.ndim >= 3 and tensor.shape[-2] == self._length and tensor.shape[-1] >= self._length

    def _follow(self, result: Any) -> None:
        if isinstance(result, Tensor) and result.is_floating_point() and result.ndim >= 3:
            self._followed[id(result)] = result

    def _is_followed(self, args: Iterable[Any]) -> bool:
        return any(
            self._is_followed(item) if isinstance(item, list | tuple) else id(item) in self._followed for item in args
        )


def _is_machinery(filename: str) -> bool:
    return filename.startswith((_TORCH, _HERE))


def _other(args: tuple[Any, ...], place: int) -> Tensor | None:
    rest = [item for index, item in enumerate(args) if index != place and isinstance(item, Tensor)]
    return rest[-1] if rest else None
