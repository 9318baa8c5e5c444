"""For each tool that runs a model under interventions, the function that computes what it should answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnterp_mcp.toolset import specs
from tests.interpreter import causal_tools, model_tools, reading_tools, writing_tools
from tests.interpreter.comparison import Comparison
from tests.interpreter.subject import Subject

Check = Callable[[Subject, dict[str, Any], Any, Comparison], None]

CHECKS: dict[str, Check] = {
    tool: getattr(module, tool)
    for module in (writing_tools, reading_tools, causal_tools, model_tools)
    for tool in specs()
    if hasattr(module, tool)
}
"""By the tool's name, which is the function's."""
