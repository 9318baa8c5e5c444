"""The methods of a laboratory: parameters, help and declarations are those of the specs."""

from __future__ import annotations

import inspect

import pytest

from nnterp_mcp.tool_methods import ToolMethods, laboratory_tools
from tools import stubs


@pytest.mark.parametrize("name", laboratory_tools())
def test_a_method_has_the_parameters_of_its_tool(name: str) -> None:
    spec = laboratory_tools()[name]
    method = getattr(ToolMethods, name)
    signature = inspect.signature(method)

    asked = {
        name: field.is_required() for name, field in spec.params.model_fields.items() if name not in ("model", "plot")
    }
    own = {name: found.default is found.empty for name, found in signature.parameters.items() if name != "self"}
    assert own == asked
    given = {name: found.default for name, found in signature.parameters.items() if name != "self"}
    optional = {
        name: value for name, value in given.items() if value is not inspect.Parameter.empty and value is not None
    }
    for field, value in spec.params.model_construct(**optional):
        if field in optional and spec.params.model_fields[field].default_factory is None:
            default = spec.params.model_fields[field].default
            assert value == default or (value,) == default, field
    assert spec.description.split()[0] in method.__doc__
    assert all(f"\n    {field}: " in method.__doc__ for field in own)


def test_the_declarations_are_current() -> None:
    assert stubs.TARGET.read_text() == stubs.stub(), "run: python -m tools.stubs"


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "str"),
        ({"enum": ["a", "b"], "type": "string"}, "Literal['a', 'b']"),
        ({"anyOf": [{"type": "integer"}, {"items": {"type": "integer"}, "type": "array"}]}, "int | Sequence[int]"),
        (
            {"anyOf": [{"items": {"type": "string"}, "type": "array"}, {"items": {"type": "object"}, "type": "array"}]},
            "Sequence[str | Mapping[str, Any]]",
        ),
    ],
)
def test_a_schema_as_a_type(schema: dict[str, object], kind: str) -> None:
    assert stubs.python_type(schema) == kind
