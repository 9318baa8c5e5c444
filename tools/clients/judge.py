"""What every judge does around its client's conversion; imported beside the judge, in the client's environment."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

Convert = Callable[[dict[str, Any], list[dict[str, Any]]], dict[str, Any]]
"""Takes a tool and its calls; gives `{"schema": …}`, `{"sent": […]}`, and `"note"` where there is something to say."""


class _Heard(logging.Handler):
    """Keeps what the client's libraries warn of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(convert: Convert) -> None:
    """Converts every tool of standard input and prints what became of them as JSON."""
    heard = _Heard()
    logging.getLogger().addHandler(heard)
    asked = json.load(sys.stdin)
    found: dict[str, Any] = {}
    for tool in asked["tools"]:
        heard.said.clear()
        calls = [arguments for name, arguments in asked["calls"] if name == tool["name"]]
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            try:
                found[tool["name"]] = convert(tool, calls)
            except Exception as error:
                found[tool["name"]] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        said = [*heard.said, *(str(one.message) for one in raised if one.category is UserWarning)]
        found[tool["name"]]["warnings"] = said
    print(json.dumps(found))


def sent_by(model: Any, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client sends that validates calls by a pydantic model: all of its fields, null where nothing was said."""
    return {"sent": [model.model_validate(call).model_dump(mode="json") for call in calls]}


def lowered(schema: Any) -> Any:
    """A schema of Google's as JSON Schema: its types are in capitals, and what is unset is null."""
    if isinstance(schema, list):
        return [lowered(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    names = {"anyOf": "anyOf", "any_of": "anyOf", "maxItems": "maxItems"}
    kept = {names.get(name, _camel(name)): lowered(part) for name, part in schema.items() if part is not None}
    if isinstance(kept.get("type"), str):
        kept["type"] = kept["type"].lower()
    if "properties" in schema and isinstance(schema["properties"], dict):
        kept["properties"] = {name: lowered(part) for name, part in schema["properties"].items()}
    return kept


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
