"""The tools that a server offers: all, or those that whoever starts it names by group or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from nnterp_mcp.contract import ToolGroup, ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.toolset import specs

BASICS = "basics"
"""The group that is always served: without it no model is loaded and no run is read."""


def served(named: Sequence[str]) -> dict[str, ToolSpec[Any, Any, Any]]:
    """The specs of the tools that are served.

    Args:
        named: Groups and tools; none stands for all.

    Raises:
        InvalidRequest: A name is neither a group nor a tool.
    """
    groups = get_args(ToolGroup)
    for name in named:
        if name not in groups and name not in specs():
            raise InvalidRequest(
                f"there is no tool and no group of tools {shown(name)}.",
                f"Groups are {', '.join(groups)}; tools are {', '.join(specs())}.",
            )
    wanted = {BASICS, *named} if named else {*groups}
    return {name: spec for name, spec in specs().items() if name in wanted or spec.group in wanted}


def limits(tools: dict[str, ToolSpec[Any, Any, Any]]) -> str:
    """The sentence of the instructions on tools that are not served; empty where all are."""
    missing = [name for name in specs() if name not in tools]
    if not missing:
        return ""
    return f"\n\nThis server does not serve {', '.join(missing)}: where a text names one of these, do without it."
