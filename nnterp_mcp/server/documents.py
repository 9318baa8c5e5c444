"""Resources about the server itself: the glossary, and the tool reference, which docs/tools.md holds too."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from mcp_types import Resource, ResourceTemplate

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.toolset import specs

SCHEME = "nnterp://"
ADDRESSES = _GLOSSARY, _TOOLS, _TOOL = "nnterp://glossary", "nnterp://tools", "nnterp://tools/{tool}"
_KIND = "text/markdown"

DOCUMENTS = (
    Resource(
        uri=_TOOLS,
        name="tools",
        title="Every tool, its parameters and what it measures",
        description="The tool reference: types, limits, defaults and meanings of every parameter.",
        mime_type=_KIND,
    ),
    Resource(
        uri=_GLOSSARY,
        name="glossary",
        title="The words of the answers, with sites and units",
        description="What an answer's words mean, and where in the model each site is.",
        mime_type=_KIND,
    ),
)
TEMPLATES = (
    ResourceTemplate(
        uri_template=_TOOL,
        name="tool",
        title="One tool of the reference",
        description="What one tool measures, with its parameters; {tool} is its name.",
        mime_type=_KIND,
    ),
)


def read_document(address: str) -> str:
    """The document at an address.

    Raises:
        InvalidRequest: There is none.
    """
    if address == _GLOSSARY:
        return resources.files("nnterp_mcp.server").joinpath("glossary.md").read_text(encoding="utf-8")
    if address == _TOOLS:
        return reference()
    spec = specs().get(address.removeprefix(f"{_TOOLS}/"))
    if spec is None:
        raise InvalidRequest(
            f"there is no document {shown(address)}: documents are {', '.join(ADDRESSES)}.",
            f"Tools are {', '.join(specs())}.",
        )
    return section(spec)


_ARRIVAL = """\
Null stands for what is left out, 3.0 for 3. A list or an object may come as JSON text, wherever it is taken; where
`prompts` come as one text that is a JSON list of texts or messages, the list is meant. A text that is to be read as it
stands, although it is such JSON, goes into a list: in a list every text stands for itself."""


def reference() -> str:
    """The whole page."""
    head = f"# Tools\n\nGenerated from the specs by `python tools/reference.py`.\n\n{_ARRIVAL}\n"
    return "\n".join([head, *(section(spec) for spec in specs().values())])


def section(spec: ToolSpec[Any, Any, Any]) -> str:
    """One tool: what it does, how it behaves, its parameters and calls of it."""
    schema = spec.input_schema()
    hints = {
        "reads only": spec.read_only,
        "removes something": spec.destructive,
        "idempotent": spec.idempotent,
        "reaches beyond this machine": spec.open_world,
    }
    behaviour = ", ".join(name for name, holds in hints.items() if holds)
    whole = spec.params.model_json_schema().get("properties", {})  # with the defaults that go without saying
    rows = [
        parameter(name, part, "required" if name in schema.get("required", []) else whole[name].get("default"))
        for name, part in schema.get("properties", {}).items()
    ]
    lines = [f"## `{spec.name}`\n", f"{spec.description}\n", f"*{spec.title}: {behaviour}.*\n"]
    if rows:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|", *rows, ""]
        calls = (f"`{json.dumps(example, ensure_ascii=False)}`" for example in spec.examples)
        lines.append(f"For example: {'; '.join(calls)}.\n")
    return "\n".join(lines)


def parameter(name: str, schema: dict[str, Any], default: Any) -> str:
    """One row of a tool's table."""
    shown = ", ".join(_kind(part) for part in schema.get("anyOf", [schema]))
    limits = [f"{schema[key]:,} {of}".rstrip() for key, of in _LIMITS.items() if key in schema]
    if limits:
        shown += f" (at most {', '.join(limits)})"
    default = default if default == "required" else f"`{json.dumps(default)}`"
    meaning = schema.get("description", "").replace("|", "\\|")
    return f"| `{name}` | {shown} | {default} | {meaning} |"


_LIMITS = {"maximum": "", "maxLength": "characters", "maxItems": "items", "maxProperties": "names"}


def _kind(schema: dict[str, Any], plural: str = "") -> str:
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if schema["type"] == "array":
        return f"list{plural} of {_kind(schema['items'], 's')}"
    return f"{schema['type']}{plural}"
