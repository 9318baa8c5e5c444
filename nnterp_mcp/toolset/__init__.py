"""One folder per MCP tool: `contract.py` (torch-free) beside `run.py` (worker) or `handle.py` (server)."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from nnterp_mcp.contract import ToolSpec


@cache
def specs() -> dict[str, ToolSpec[Any, Any, Any]]:
    """Every tool's spec under its name: the folders of this package, in alphabetical order."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}.contract").SPEC for name in folders}
