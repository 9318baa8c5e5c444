"""An anatomy as plain data: modules by their paths, code by the names under which it is found again."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields, replace
from functools import reduce
from types import CodeType
from typing import Any

from torch import nn

from nnterp_mcp.model.structure.anatomy import Anatomy, LayerAnatomy, Site
from nnterp_mcp.model.structure.attention_span import Horizon


class NoRecord(Exception):
    """An anatomy cannot be written as plain data, or the data do not fit the model."""


def write_anatomy(anatomy: Anatomy) -> dict[str, Any]:
    """An anatomy as data for JSON.

    Raises:
        NoRecord: Its attention runs in code that has no name of its own.
    """
    return {field.name: _plain(getattr(anatomy, field.name)) for field in fields(anatomy)}


def read_anatomy(written: dict[str, Any], model: nn.Module) -> Anatomy:
    """The anatomy of a model, from the data of one that is built alike.

    Raises:
        NoRecord: A module or a function that it names is not there.
    """
    modules = dict(model.named_modules())
    try:
        layers = tuple(LayerAnatomy(**_restored(layer, modules)) for layer in written["layers"])
        return Anatomy(**_restored(written | {"layers": layers}, modules))
    except (KeyError, TypeError, AttributeError) as error:
        raise NoRecord(str(error)) from error


def rebind(anatomy: Anatomy, model: nn.Module) -> Anatomy:
    """The anatomy of a model whose modules have the paths of those of another.

    Args:
        anatomy: That of the other model.
        model: The model.

    Raises:
        KeyError: It lacks one of the modules.
    """
    return _bound(anatomy, dict(model.named_modules()))


def _bound(value: Any, modules: dict[str, nn.Module]) -> Any:
    match value:
        case Site():
            return replace(value, module=modules[value.path])
        case Anatomy() | LayerAnatomy():
            return replace(
                value, **{field.name: _bound(getattr(value, field.name), modules) for field in fields(value)}
            )
        case tuple():
            return tuple(_bound(item, modules) for item in value)  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


def _plain(value: Any) -> Any:
    match value:
        case Site() | Horizon() | LayerAnatomy():
            own = {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.name != "module"}
            return {type(value).__name__: own} if isinstance(value, Site | Horizon) else own
        case (CodeType() as code, line):
            return {"code": [*_name(code), code.co_firstlineno, line]}
        case tuple():
            return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


def _restored(written: dict[str, Any], modules: dict[str, nn.Module]) -> dict[str, Any]:
    return {name: _restore(value, modules) for name, value in written.items()}


def _restore(value: Any, modules: dict[str, nn.Module]) -> Any:
    match value:
        case {"Site": site}:
            return Site(modules[site["path"]], **site)
        case {"Horizon": horizon}:
            return Horizon(**horizon)
        case {"code": [module, name, first, line]}:
            code = _find(module, name)
            if code is None or code.co_firstlineno != first:
                raise NoRecord(f"{module}.{name} is not what it was")
            return code, line
        case list():
            return tuple(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case _:
            return value


def _name(code: CodeType) -> tuple[str, str]:
    module = inspect.getmodule(code)
    if module is None or _find(module.__name__, code.co_qualname) is not code:
        raise NoRecord(f"{code.co_qualname} has no name of its own")
    return module.__name__, code.co_qualname


def _find(module: str, name: str) -> CodeType | None:
    """The code of a function or method, None where no such module is imported or it has no such function."""
    function = reduce(lambda owner, part: getattr(owner, part, None), name.split("."), sys.modules.get(module))
    return getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
