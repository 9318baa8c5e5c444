"""Writes nnterp_mcp/tool_methods.pyi, the tools for type checkers. `--check` only says whether it is current."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.tool_methods import laboratory_tools, parameters_of
from tools.project import ROOT, keep_current

TARGET = ROOT / "nnterp_mcp" / "tool_methods.pyi"
_SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "object": "Mapping[str, Any]"}
_HEAD = '''"""The tools as methods, for type checkers: written by tools/stubs.py from the specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any, Literal

from nnterp_mcp.contract import Result, ToolSpec
'''
_OWN = """
def laboratory_tools() -> dict[str, ToolSpec[Any, Any, Any]]: ...
def parameters_of(spec: ToolSpec[Any, Any, Any]) -> dict[str, Parameter]: ...

class ToolMethods:
    def call(self, tool: str, /, **arguments: Any) -> Result: ...
"""


def python_type(schema: Mapping[str, Any]) -> str:
    """The Python type of the values that a JSON schema allows; one list may mix all kinds of items."""
    parts: list[Mapping[str, Any]] = schema.get("anyOf", [schema])
    names = [_one_type(part) for part in parts if part.get("type") != "array"]
    items = [python_type(part["items"]) for part in parts if part.get("type") == "array"]
    if items:
        names.append(f"Sequence[{' | '.join(dict.fromkeys(name for item in items for name in item.split(' | ')))}]")
    return " | ".join(dict.fromkeys(names))


def _one_type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    return _SCALARS[schema["type"]]


def method(spec: ToolSpec[Any, Any, Any]) -> str:
    """The declaration of one tool's method."""
    fields = spec.input_schema()["properties"]
    lines = ["self"]
    by_name = False
    for name, parameter in parameters_of(spec).items():
        if parameter.kind is Parameter.KEYWORD_ONLY and not by_name:
            lines.append("*")
            by_name = True
        lines.append(f"{name}: {_declared(fields[name], parameter)}")
    return f"    def {spec.name}({', '.join(lines)}) -> {spec.result.__name__}: ..."


def _declared(field: Mapping[str, Any], parameter: Parameter) -> str:
    kind = python_type(field)
    if parameter.default is Parameter.empty:
        return kind
    if parameter.default is None:
        return f"{kind} | None = None"
    return f"{kind} = {parameter.default!r}"


def stub() -> str:
    """The whole file, formatted."""
    tools = laboratory_tools().values()
    imports = [f"from {spec.result.__module__} import {spec.result.__name__}" for spec in tools]
    text = "\n".join([_HEAD + "\n".join(imports), _OWN + "\n".join(map(method, tools)), ""])
    done = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "format", "--stdin-filename", str(TARGET), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(keep_current(TARGET, stub()))
