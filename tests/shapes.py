"""An import hook that checks the shapes in the package's signatures whenever a test calls a function.

jaxtyping's own hook wraps every function, with a type checker for every argument: the import of the package then takes
seven times as long. This one leaves modules as they are compiled, replaces those functions and methods alone whose
annotations name a shape, and asks jaxtyping about these arguments and results.
"""

from __future__ import annotations

import inspect
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, update_wrapper
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

PACKAGE = "nnterp_mcp"
_SHAPE = re.compile(r"\b(Bool|Float|Int|Shaped)\[")


class Checked:
    """A function whose arguments and result must have the shapes that its signature names.

    Raises:
        TypeError: One of them has another.
    """

    def __init__(self, function: types.FunctionType) -> None:
        update_wrapper(self, function)
        self._function = function

    @cached_property
    def _hints(self) -> dict[str, Any]:
        """The annotations that name shapes, read at the first call."""
        found: dict[str, Any] = {}
        names = inspect.unwrap(self._function).__globals__
        for name, hint in self._function.__annotations__.items():
            if _SHAPE.search(str(hint)):
                try:
                    found[name] = eval(hint, names)
                except NameError:  # imported for type checkers alone
                    continue
        return found

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from jaxtyping import jaxtyped

        with jaxtyped("context"):
            given = self._signature.bind(*args, **kwargs).arguments
            for name, hint in self._hints.items():
                if name in given:
                    self._require(name, given[name], hint)
            returned = self._function(*args, **kwargs)
            if "return" in self._hints:
                self._require("the result", returned, self._hints["return"])
        return returned

    def _require(self, name: str, value: Any, hint: Any) -> None:
        if not fits(value, hint):
            raise TypeError(f"{name} of {self._function.__qualname__}: {_describe(value)} is no {hint}")

    def __get__(self, owner: object, kind: type | None = None) -> Any:
        return self if owner is None else types.MethodType(self, owner)

    def __reduce__(self) -> tuple[Any, ...]:
        """A served model is sent the function itself."""
        return operator.itemgetter(0), ((self._function,),)


def fits(value: Any, hint: Any) -> bool:
    """True where arrays have the shapes of an annotation; what is no array is left to pyright."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(isinstance(value, typing.get_origin(member) or member) and fits(value, member) for member in members)
    if origin is tuple and members[-1] is not Ellipsis:
        return all(map(fits, value, members))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return all(_fits_alone(one, members[1]) for one in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return all(_fits_alone(one, members[0]) for one in value)
    return not _SHAPE.search(str(hint)) or origin is not None or isinstance(value, hint)


def _fits_alone(value: Any, hint: Any) -> bool:
    """An item of a collection, whose sizes can be others than those of the next item."""
    from jaxtyping import jaxtyped

    with jaxtyped("context"):
        return fits(value, hint)


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def check_shapes(owner: types.ModuleType | type, module: str) -> None:
    """Replaces the functions that a module defines, itself or in a class, and whose annotations name a shape."""
    for name, value in list(vars(owner).items()):
        if isinstance(value, type) and value.__module__ == module and owner is not value:
            check_shapes(value, module)
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(function, types.FunctionType) and function.__module__ == module and _is_checked(function):
            checked: Any = Checked(function)
            setattr(owner, name, checked if function is value else type(value)(checked))


def _is_checked(function: types.FunctionType) -> bool:
    """Functions that warn of a deprecated name count the frames up to the caller."""
    named = any(_SHAPE.search(str(hint)) for hint in function.__annotations__.values())
    return named and "name_columns" not in inspect.unwrap(function).__code__.co_names


class _CheckingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._loader.exec_module(module)
        check_shapes(module, module.__name__)


class _CheckingFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _CheckingLoader(spec.loader)
        return spec


def install() -> Callable[[], None]:
    """Checks the shapes of all modules of the package that are imported from now on.

    Returns:
        Removes the hook.
    """
    finder = _CheckingFinder()
    sys.meta_path.insert(0, finder)
    return lambda: sys.meta_path.remove(finder)
