"""Writes the viewer as one self-contained HTML page: its modules, its style and, if wanted, a run's data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from nnterp_mcp.display import bundle
from nnterp_mcp.toolset import specs

PageSource = Literal["host", "server", "page"]
"""The source of the page's run: the MCP host that shows it, its server, or the page itself."""

_TOOLS = files("nnterp_mcp").joinpath("toolset")


@cache
def explored_tools() -> frozenset[str]:
    """The tools whose results have a view of their own: those with a `view.js` in their folder."""
    return frozenset(name for name in specs() if _TOOLS.joinpath(name, "view.js").is_file())


@cache
def viewed_tools() -> frozenset[str]:
    """The tools whose results the viewer shows: those with a view of their own or a figure."""
    return explored_tools() | {name for name, spec in specs().items() if spec.figure is not None}


@cache
def page(source: PageSource = "host") -> str:
    """The page without data."""
    return bundle.page_of(_script(), source)


def page_with(data: Mapping[str, Any]) -> str:
    """The page with a run in it, to be opened from a file.

    Args:
        data: The run's answer, its figure and its parts as tables; numbers that are not finite become null.
    """
    return bundle.page_of(_script(), "page", data)


@cache
def policy(source: PageSource) -> str:
    """The content security policy of the page: its own script and style, and no more than its source to speak to."""
    return bundle.security_policy(_script(), source)


@cache
def _script() -> str:
    return bundle.bundled("viewer/main.js", {"viewer/views.js": _views()})


def _views() -> str:
    names = sorted(explored_tools())
    imports = [f'import {{ show as {name} }} from "../toolset/{name}/view.js";\n' for name in names]
    return f"{''.join(imports)}export const views = {{ {', '.join(names)} }};\n"
