"""The tool reference, generated from the specs: docs/tools.md, and a resource for clients."""

from __future__ import annotations

import json
from typing import Any

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset import specs

_ARRIVAL = """\
Null stands for what is left out, 3.0 for 3. A list or an object may come as JSON text, wherever it is taken; where
`prompts` come as one text that is a JSON list of texts or messages, the list is meant. A text that is to be read as it
stands, although it is such JSON, goes into a list: in a list every text stands for itself."""


def reference() -> str:
    """The whole page."""
    head = f"# Tools\n\nGenerated from the specs by `python tools/reference.py`.\n\n{_ARRIVAL}\n"
    return "\n".join([head, *(section(spec) for spec in specs().values())])


def section(spec: ToolSpec[Any, Any, Any]) -> str:
    """One tool: what it does, how it behaves, and its parameters."""
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
