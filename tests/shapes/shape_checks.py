"""An import hook that checks the shapes in the package's signatures whenever a test calls a function.

jaxtyping's own hook wraps every function and class, for a checker of all types: `save`, which nnsight adds to every
object, breaks such checkers, and the import of the package takes seven times as long. This one compiles a check into
those functions and dataclasses alone whose annotations name a shape. They stay what they are, with the same source:
served models, which are sent that source, get none of it.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import types
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import _bootstrap_external
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

_SHAPE = re.compile(r"\b(Bool|Float|Int|Shaped)\[")
_CACHED = functools.partial(cache_from_source, optimization=f"shapes{zlib.crc32(Path(__file__).read_bytes())}")


class WrongShape(BaseException):
    """An array has another shape than its annotation says; no `Exception`, which the package catches in many trials."""


def install(package: str) -> None:
    """Checks the shapes of all modules of a package that are imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType | None:
        """The checked code, cached apart from that of the module as it is."""
        _bootstrap_external.cache_from_source = _CACHED
        try:
            return super().get_code(fullname)
        finally:
            _bootstrap_external.cache_from_source = cache_from_source

    def source_to_code(self, data: Any, path: Any, **options: Any) -> types.CodeType:
        if b"jaxtyping" in data:
            data = ast.fix_missing_locations(_Instrument().visit(ast.parse(data)))
        return super().source_to_code(data, path, **options)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module).update(__check_shapes__=check_call, __check_fields__=check_fields)
        super().exec_module(module)


class _Instrument(ast.NodeTransformer):
    """Lets functions check their arguments before their first statement, and what they return."""

    def __init__(self) -> None:
        self._returns = [False]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        hints = {argument.arg: argument.annotation for argument in arguments} | {"return": node.returns}
        texts = {name: ast.unparse(hint) for name, hint in hints.items() if hint}
        shaped = {name: text for name, text in texts.items() if _SHAPE.search(text)}
        self._returns.append("return" in shaped)
        self.generic_visit(node)
        self._returns.pop()
        if shaped:
            begin = ast.parse(f"__shapes__ = __check_shapes__({shaped!r}, locals(), globals())").body
            documented = ast.get_docstring(node, clean=False) is not None
            node.body[documented:documented] = begin
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if self._returns[-1]:
            checked = ast.Name("__shapes__", ast.Load())
            node.value = ast.Call(checked, [node.value or ast.Constant(None)], [])
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            node.decorator_list.insert(0, ast.Name("__check_fields__", ast.Load()))
        return node


def check_call(hints: dict[str, str], values: dict[str, Any], names: dict[str, Any]) -> Callable[[Any], Any]:
    """Checks the arguments of a call.

    Args:
        hints: The annotations that name shapes.
        values: The arguments.
        names: The names of the function's module.

    Returns:
        Checks what the function returns, and returns it.

    Raises:
        WrongShape: An argument has another shape or another kind of numbers.
    """
    given = {name: values[name] for name in hints if name != "return"}
    called = sys._getframe(1).f_code.co_qualname
    _check(called, hints, given, names)

    def finish(result: Any) -> Any:
        _check(called, hints, given | {"return": result}, names)
        return result

    return finish


def check_fields(kind: type) -> type:
    """Checks the fields of a dataclass whenever one is made."""
    hints = {name: text for name, text in kind.__annotations__.items() if _SHAPE.search(str(text))}
    if hints:
        make, names = kind.__init__, vars(sys.modules[kind.__module__])

        @functools.wraps(make)
        def make_checked(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **kwargs)
            _check(kind.__qualname__, hints, vars(self), names)

        kind.__init__ = make_checked
    return kind


def _check(owner: str, hints: dict[str, str], values: dict[str, Any], names: dict[str, Any]) -> None:
    from jaxtyping import jaxtyped

    with jaxtyped("context"):
        for name, text in hints.items():
            if name in values and not fits(values[name], _resolve(text, names)):
                value = values[name]
                said = f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
                raise WrongShape(f"{name} of {owner}: {said} is no {text}")


def _resolve(text: str, names: dict[str, Any]) -> Any:
    """The type that an annotation names; modules may import for type checkers alone what shapes are made of."""
    key = text, names["__name__"]
    if key not in _RESOLVED:
        import jaxtyping
        import numpy as np

        torch = sys.modules.get("torch")
        known = {**vars(jaxtyping), "np": np, "Tensor": torch and torch.Tensor}
        _RESOLVED[key] = eval(text, {**known, **vars(typing), **names})
    return _RESOLVED[key]


_RESOLVED: dict[tuple[str, str], Any] = {}


def fits(value: Any, hint: Any) -> bool:
    """True where arrays have the shapes of an annotation; what is no array is left to pyright."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if not _SHAPE.search(str(hint)):
        return True
    if origin is None:
        return isinstance(value, hint)
    if origin in (typing.Union, types.UnionType):
        likely = [member for member in members if isinstance(value, _kind_of(member))]
        return not likely or any(fits(value, member) for member in likely)
    if origin is tuple and members[-1] is not Ellipsis:
        return all(map(fits, value, members))
    if issubclass(origin, Mapping):
        return all(_fits_alone(one, members[1]) for one in value.values())
    if issubclass(origin, Sequence):
        return all(_fits_alone(one, members[0]) for one in value)
    return True


def _kind_of(hint: Any) -> Any:
    """The class of what fits an annotation; none for literals."""
    kind = typing.get_origin(hint) or (Array if _SHAPE.search(str(hint)) else hint)
    return kind if isinstance(kind, type) and kind is not Any else ()


@typing.runtime_checkable
class Array(typing.Protocol):
    """A tensor or an array."""

    shape: Any


def _fits_alone(value: Any, hint: Any) -> bool:
    """An item of a collection, whose sizes can be others than those of the next item."""
    from jaxtyping import jaxtyped

    with jaxtyped("context"):
        return fits(value, hint)
