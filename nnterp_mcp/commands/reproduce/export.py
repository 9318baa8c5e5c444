"""A run as a short Python script on the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nnterp_mcp.commands.reproduce.rerun import Rerun, prepare_rerun
from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.toolset import specs

_WIDTH = 100
"""Characters of a literal that stays on one line."""


def export(record: RunRecord, data: Path) -> str:
    """Writes a script that makes a run's call again and prints its answer; `result` then holds every number.

    Named vectors are made and dictionaries loaded again from their recorded requests, in a temporary folder.

    Args:
        record: The run.
        data: The folder of the named vectors and of the loaded dictionaries.

    Raises:
        InvalidRequest: The run did not finish, or a vector that it used is gone.
    """
    rerun = prepare_rerun(record, data)
    own_vectors = bool(rerun.vectors or rerun.dictionaries) or not rerun.spec.read_only
    lines = [_head(rerun), ""]
    if own_vectors:
        lines += ["from tempfile import TemporaryDirectory", ""]
    lines += ["from nnterp_mcp import Laboratory"]
    if own_vectors:
        lines += ["from nnterp_mcp.settings import Settings", "", _FOLDER]
    lines += ["", f"lab = {_laboratory(rerun, own_vectors)}"]
    made = [f"lab.{_call(specs()['load_features'], card.request)}" for card in rerun.dictionaries]
    made += [f"lab.{_call(specs()[card.tool], card.request)}" for card in rerun.vectors]
    lines += ["", *made, f"result = lab.{_call(rerun.spec, rerun.arguments)}", "", "print(lab.show(result))", ""]
    return "\n".join(lines)


_FOLDER = """# Vectors are made here, so that stored ones of the same names are not replaced.
vectors = TemporaryDirectory()"""


def _head(rerun: Rerun) -> str:
    record, environment = rerun.record, rerun.record.environment
    lines = [f"{record.id}: {record.tool} on {record.model}, {record.opened[:10]}.", ""]
    if environment is not None:
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
        lines += [
            f"Computed with {versions};",
            f"{environment.architecture} in {environment.dtype} on {environment.device_name}, from "
            f"{environment.source}{f' at {environment.revision}' if environment.revision else ''}, weights "
            f"{environment.fingerprint}.",
        ]
    lines += [f"The vector {name!r} was made anew after that: its numbers may be others." for name in rerun.replaced]
    lines += ["Prints the answer; `result` holds every number."]
    return '"""' + "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''") + '\n"""'


def _laboratory(rerun: Rerun, own_vectors: bool) -> str:
    spec = specs()["load_model"]
    given = _arguments(spec, rerun.loading)
    written = [as_source(given.pop("model")), *(f"{name}={as_source(value, 1)}" for name, value in given.items())]
    others = {name: _arguments(spec, request) for name, request in rerun.record.others.items()}
    if others:
        written += [f"others={as_source(others, 1)}", f"handle={as_source(rerun.record.model)}"]
    return _bracketed(
        "Laboratory(",
        [*written, *(["settings=Settings(data=vectors.name, runs=Settings().runs)"] if own_vectors else [])],
        ")",
    )


def _call(spec: ToolSpec[Any, Any, Any], arguments: Mapping[str, Any]) -> str:
    given = _arguments(spec, arguments)
    return _bracketed(f"{spec.name}(", [f"{name}={as_source(value, 1)}" for name, value in given.items()], ")")


def _arguments(spec: ToolSpec[Any, Any, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that differ from their defaults, as plain data."""
    params = spec.parse(arguments)
    short = _given(params, kinds=False)
    return short if spec.parse(short) == params else dict(arguments)


def _given(value: Any, kinds: bool = True) -> Any:
    """Plain data as a caller writes it: without defaults, except for fields that name a kind."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        named = {name: part for name, part in value if kinds and _is_kind(fields[name])}
        given = {
            fields[name].serialization_alias or name: _given(part)
            for name, part in value
            if fields[name].is_required() or part != fields[name].get_default(call_default_factory=True)
        }
        return named | given
    if isinstance(value, Mapping):
        return {name: _given(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_given(part) for part in value]
    return value


def _is_kind(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def as_source(value: Any, depth: int = 0) -> str:
    """Plain data as Python source: on one line if it is short, else one item a line.

    Args:
        value: None, flags, numbers, texts, lists and dictionaries.
        depth: Its level of indentation.
    """
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return _bracketed(
            "{", [f"{as_source(key)}: {as_source(part, depth + 1)}" for key, part in value.items()], "}", depth
        )
    if isinstance(value, list | tuple):
        return _bracketed("[", [as_source(part, depth + 1) for part in value], "]", depth)
    return repr(value)


def _quoted(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold
        return repr(text)
    return json.dumps(text, ensure_ascii=False)


def _bracketed(opening: str, items: list[str], closing: str, depth: int = 0) -> str:
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) + 4 * depth <= _WIDTH and "\n" not in line:
        return line
    indent = "    " * (depth + 1)
    return "\n".join([opening, *(f"{indent}{item}," for item in items), "    " * depth + closing])
