"""Pages in one file: modules bundled into one script, the style, and data, under a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from nnterp_mcp.display import style
from nnterp_mcp.display.figure import MARKS

_PACKAGE = files("nnterp_mcp")
_STYLE = "viewer/style.js"
_DATA = '<script type="application/json" id="run">'
_IMPORT = re.compile(r'^import (?P<names>\{[^}]*\}) from "(?P<path>[^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (?P<name>\w+))", re.MULTILINE)


def page_of(script: str, source: str, data: Mapping[str, Any] | None = None) -> str:
    """A page.

    Args:
        script: The script.
        source: The source of what it shows: `host`, `server` or `page`.
        data: The data that it carries.
    """
    parts = {
        "source": source,
        "version": version("nnterp-mcp"),
        "policy": security_policy(script, source),
        "style": _style_sheet(),
        "data": "" if data is None else _carried(data),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("viewer/page.html"))


def security_policy(script: str, source: str) -> str:
    """The content security policy of a page: its own script and style, and no more than its source to speak to."""
    connect = "'self'" if source == "server" else "'none'"
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(_style_sheet())}'; "
        f"img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def bundled(entry: str, made: Mapping[str, str]) -> str:
    """One script of a module and all that it imports, each in its own scope, after its imports.

    Args:
        entry: The module's path in the package.
        made: Modules that are not files, by their paths.
    """
    made = {_STYLE: _style_module(), **made}
    written: dict[str, str] = {}

    def add(path: str) -> None:
        folder = posixpath.dirname(path)

        def resolve(found: re.Match[str]) -> str:
            imported = posixpath.normpath(posixpath.join(folder, found["path"]))
            if imported not in written:
                add(imported)
            return f"const {found['names'].replace(' as ', ': ')} = modules[{json.dumps(imported)}];\n"

        body = _IMPORT.sub(resolve, made.get(path) or _read(path))
        names = ", ".join(found["name"] for found in _EXPORT.finditer(body))
        body = _EXPORT.sub("", body)
        written[path] = f"modules[{json.dumps(path)}] = (() => {{\n{body}return {{ {names} }};\n}})();\n"

    add(entry)
    return f"const modules = {{}};\n{''.join(written.values())}"


def _style_module() -> str:
    shared = {"sequential": style.SEQUENTIAL, "diverging": style.DIVERGING, "marks": MARKS}
    return "".join(f"export const {name} = {json.dumps(value)};\n" for name, value in shared.items())


@cache
def _style_sheet() -> str:
    pairs = zip(style.PALETTE, style.PALETTE_ON_DARK, strict=True)
    series = "".join(f"--series-{at}: light-dark({light}, {dark}); " for at, (light, dark) in enumerate(pairs))
    return f"{_read('viewer/style.css')}:root {{ {series}--lowers: {style.LOWERS}; --raises: {style.RAISES}; }}\n"


def _carried(data: Mapping[str, Any]) -> str:
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing in a text may end the element that holds it, or begin another.
    content = content.replace("<", "\\u003c")
    return f"{_DATA}{content}</script>"


def data_of(page: str) -> dict[str, Any] | None:
    """The data that a page carries; None for a page without, such as earlier versions wrote."""
    _, found, rest = page.partition(_DATA)
    return json.loads(rest.partition("</script>")[0]) if found else None


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _read(path: str) -> str:
    return _PACKAGE.joinpath(path).read_text(encoding="utf-8")
