"""One folder per MCP tool, with its `SPEC` in `__init__.py`, the only registry.

`params.py` holds the arguments, `result.py` the result and the answer, `answer.py` how the one is cut down to the
other, `figure.py` the picture if there is one; all of these are torch-free. `run.py` does the work, in the process that
the spec names, and is imported there only.
"""

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
    return {name: importlib.import_module(f"{__name__}.{name}").SPEC for name in folders}
