"""The tool reference: what docs/tools.md holds, and what clients read as a resource. Written from the specs."""

from __future__ import annotations

import json
from typing import Any

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset import specs


def reference() -> str:
    """The whole page."""
    head = "# Tools\n\nGenerated from the specs by `python tools/reference.py`.\n"
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
    kind = schema.get("type", schema.get("anyOf", "any"))
    if "enum" in schema:
        kind = [json.dumps(value) for value in schema["enum"]]
    elif schema.get("anyOf"):
        kind = [value for part in schema["anyOf"] for value in part.get("enum", [part.get("type", "any")])]
    shown = ", ".join(map(str, kind)) if isinstance(kind, list) else kind
    default = default if default == "required" else f"`{json.dumps(default)}`"
    meaning = schema.get("description", "").replace("|", "\\|")
    return f"| `{name}` | {shown} | {default} | {meaning} |"
