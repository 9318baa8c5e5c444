"""The modelling code of a loaded model, in the worker."""

from __future__ import annotations

import inspect
from pathlib import Path
from textwrap import dedent
from types import CodeType

from torch import nn

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.structure.anatomy import LayerAnatomy
from nnterp_mcp.toolset.inspect_model.result import ForwardCode

_BEFORE = 24
"""Lines of code that are shown before the one in question."""


def read_forward(module: nn.Module, products: list[tuple[CodeType, int]], start: int | None) -> ForwardCode:
    """The code of a module's forward pass.

    Args:
        module: The module.
        products: Where the model's attention probabilities multiply values.
        start: The line of its file to begin with.

    Raises:
        InvalidRequest: The line is not in it.
        Unsupported: The code cannot be read.
    """
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    if code is None:
        raise Unsupported(f"{type(module).__name__}.forward is not written in Python.")
    return _read(f"{type(module).__name__}.forward", code, products, start)


def read_product(product: tuple[CodeType, int], start: int | None) -> ForwardCode:
    """The code of the function in which attention probabilities multiply values, from a little before that on.

    Raises:
        InvalidRequest: The line to begin with is not in it.
        Unsupported: The code cannot be read.
    """
    code, line = product
    return _read(
        code.co_qualname, code, [product], max(code.co_firstlineno, line - _BEFORE) if start is None else start
    )


def describe_product(layer: LayerAnatomy) -> str | None:
    """Where a layer's attention probabilities multiply values, in a line."""
    if layer.product is None or layer.core is None:
        return None
    code, line = layer.product
    source = read_product(layer.product, None)
    return f"{code.co_qualname}, {source.file} line {line}: {source.lines[line - source.first].strip()}"


def _read(function: str, code: CodeType, products: list[tuple[CodeType, int]], start: int | None) -> ForwardCode:
    try:
        lines, first = inspect.getsourcelines(code)
    except OSError:
        raise Unsupported(f"the code of {function} cannot be read: its file is not there.") from None
    last = first + len(lines) - 1
    if start is not None and not first <= start <= last:
        raise InvalidRequest(f"line {start} is not in {function}, which has lines {first} to {last}.")
    return ForwardCode(
        function=function,
        file=Path(code.co_filename).name,
        first=first,
        lines=dedent("".join(lines)).splitlines(),
        start=first if start is None else start,
        product=next((line for owner, line in products if owner is code), None),
    )
