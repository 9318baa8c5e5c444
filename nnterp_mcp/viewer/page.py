"""Writes the viewer as one self-contained HTML page: its modules, its style and, if wanted, a run's data."""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from nnterp_mcp import __version__
from nnterp_mcp.toolset import specs

PageSource = Literal["host", "server", "page"]
"""The source of the page's run: the MCP host that shows it, its server, or the page itself."""

_PACKAGE = files("nnterp_mcp")
_VIEWS = "viewer/views.js"
_IMPORT = re.compile(r'^import (?P<names>\{[^}]*\}) from "(?P<path>[^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (?P<name>\w+))", re.MULTILINE)


@cache
def viewed_tools() -> frozenset[str]:
    """The tools whose results have a view: those with a `view.js` in their folder."""
    return frozenset(name for name in specs() if _PACKAGE.joinpath("toolset", name, "view.js").is_file())


@cache
def page(source: PageSource = "host") -> str:
    """The page without data."""
    return _written(source, "")


def page_with(data: Mapping[str, Any]) -> str:
    """The page with a run in it, to be opened from a file.

    Args:
        data: The run's answer, and its parts as tables; numbers that are not finite become null.
    """
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing in a text may end the element that holds it, or begin another.
    content = content.replace("<", "\\u003c")
    return _written("page", f'<script type="application/json" id="run">{content}</script>')


def _written(source: PageSource, data: str) -> str:
    style, script = _read("viewer/style.css"), _script()
    parts = {
        "source": source,
        "version": __version__,
        "policy": policy(source),
        "style": style,
        "data": data,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("viewer/page.html"))


@cache
def policy(source: PageSource) -> str:
    """The content security policy of the page: its own script and style, and no more than its source to speak to."""
    connect = "'self'" if source == "server" else "'none'"
    return (
        f"default-src 'none'; script-src '{_hash(_script())}'; style-src '{_hash(_read('viewer/style.css'))}'; "
        f"img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _read(path: str) -> str:
    return _PACKAGE.joinpath(path).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """Bundles the modules into one script, each in its own scope, after its imports."""
    written: dict[str, str] = {}
    _add("viewer/main.js", written)
    return f"const modules = {{}};\n{''.join(written.values())}"


def _add(path: str, written: dict[str, str]) -> None:
    code = _views() if path == _VIEWS else _read(path)
    folder = posixpath.dirname(path)

    def resolve(found: re.Match[str]) -> str:
        imported = posixpath.normpath(posixpath.join(folder, found["path"]))
        if imported not in written:
            _add(imported, written)
        return f"const {found['names'].replace(' as ', ': ')} = modules[{json.dumps(imported)}];\n"

    body = _IMPORT.sub(resolve, code)
    names = ", ".join(found["name"] for found in _EXPORT.finditer(body))
    body = _EXPORT.sub("", body)
    written[path] = f"modules[{json.dumps(path)}] = (() => {{\n{body}return {{ {names} }};\n}})();\n"


def _views() -> str:
    names = sorted(viewed_tools())
    imports = [f'import {{ show as {name} }} from "../toolset/{name}/view.js";\n' for name in names]
    return f"{''.join(imports)}export const views = {{ {', '.join(names)} }};\n"
