"""The tools as methods, with parameters read from the specs; type checkers read `tool_methods.pyi`."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from inspect import Parameter
from typing import Any

from nnterp_mcp.contract import Result, ToolSpec
from nnterp_mcp.toolset import specs

_OF_THE_SERVER = frozenset({"model", "plot"})
"""Parameters that a method does without: a laboratory has one model, and `figure` draws."""


@cache
def laboratory_tools() -> dict[str, ToolSpec[Any, Any, Any]]:
    """The tools that work on a loaded model, by name."""
    return {name: spec for name, spec in specs().items() if spec.place == "worker"}


def parameters_of(spec: ToolSpec[Any, Any, Any]) -> dict[str, Parameter]:
    """A tool's parameters as those of a method: required ones (or else the first) may be given by position.

    A default is the one that the tool's schema states, and None where leaving the argument out means something else.
    """
    schema = spec.input_schema()
    fields = {name: field for name, field in schema["properties"].items() if name not in _OF_THE_SERVER}
    required = schema.get("required", [])
    by_position = required or list(fields)[:1]
    ordered = [*by_position, *(name for name in fields if name not in by_position)]
    return {
        name: Parameter(
            name,
            Parameter.POSITIONAL_OR_KEYWORD if name in by_position else Parameter.KEYWORD_ONLY,
            default=Parameter.empty if name in required else _default(spec, name),
        )
        for name in ordered
    }


def _default(spec: ToolSpec[Any, Any, Any], name: str) -> Any:
    """A default of the schema, which leaves out `False`; the one item of a list stands for the list."""
    if spec.params.model_fields[name].default is False:
        return False
    stated = spec.input_schema()["properties"][name].get("default")
    return stated[0] if isinstance(stated, list) and len(stated) == 1 else stated  # pyright: ignore


def _docstring(spec: ToolSpec[Any, Any, Any]) -> str:
    fields = spec.input_schema()["properties"]
    told = [
        textwrap.fill(
            f"{name}: {fields[name].get('description', '')}", 108, initial_indent="    ", subsequent_indent=" " * 8
        )
        for name in parameters_of(spec)
    ]
    return "\n".join(
        [
            f"{spec.title}.",
            "",
            textwrap.fill(spec.description, 112),
            "",
            *(["Args:", *told, ""] if told else []),
            "Returns:",
            f"    A `{spec.result.__name__}` with every number; `show` cuts it to what an agent sees.",
            "",
            "Raises:",
            "    NnterpError: An argument is wrong, or the model cannot do it.",
        ]
    )


def _method(spec: ToolSpec[Any, Any, Any]) -> Callable[..., Result]:
    parameters = parameters_of(spec)
    by_position = [name for name, found in parameters.items() if found.kind is Parameter.POSITIONAL_OR_KEYWORD]

    def method(self: ToolMethods, *arguments: Any, **named: Any) -> Result:
        if len(arguments) > len(by_position):
            raise TypeError(f"{spec.name} takes {len(by_position)} arguments by position, not {len(arguments)}")
        given = dict(zip(by_position, arguments, strict=False))
        for name in given.keys() & named.keys():
            raise TypeError(f"{spec.name} got two values for {name!r}")
        return self.call(spec.name, **given, **named)

    method.__name__ = spec.name
    method.__qualname__ = f"Laboratory.{spec.name}"
    method.__doc__ = _docstring(spec)
    own = Parameter("self", Parameter.POSITIONAL_ONLY)
    vars(method)["__signature__"] = inspect.Signature([own, *parameters.values()], return_annotation=spec.result)
    return method


class ToolMethods:
    """Base of a laboratory, with a method for each tool that works on a loaded model."""

    def call(self, tool: str, /, **arguments: Any) -> Result:
        """Runs a tool by its name."""
        raise NotImplementedError


for _name, _spec in laboratory_tools().items():
    setattr(ToolMethods, _name, _method(_spec))
