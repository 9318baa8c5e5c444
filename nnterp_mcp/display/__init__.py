"""Figures and data frames for people. Importing this loads nothing: its names are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnterp_mcp.display.evolution import plot_target_evolution
    from nnterp_mcp.display.html import write_html
    from nnterp_mcp.display.png import draw_png
    from nnterp_mcp.display.prompts import prompts_to_df
    from nnterp_mcp.display.tokens import plot_topk_tokens

_HOMES = {
    "draw_png": "png",
    "plot_target_evolution": "evolution",
    "plot_topk_tokens": "tokens",
    "prompts_to_df": "prompts",
    "write_html": "html",
}

__all__ = ["draw_png", "plot_target_evolution", "plot_topk_tokens", "prompts_to_df", "write_html"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
