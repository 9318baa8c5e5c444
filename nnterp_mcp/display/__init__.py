"""Figures and data frames for people. Importing this loads nothing: its names are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnterp_mcp.display.html import write_html
    from nnterp_mcp.display.png import draw_png
    from nnterp_mcp.nnterp.plot_evolution import plot_target_evolution
    from nnterp_mcp.nnterp.plot_prompts import prompts_to_df
    from nnterp_mcp.nnterp.plot_tokens import plot_topk_tokens

_HOMES = {
    "draw_png": "display.png",
    "plot_target_evolution": "nnterp.plot_evolution",
    "plot_topk_tokens": "nnterp.plot_tokens",
    "prompts_to_df": "nnterp.plot_prompts",
    "write_html": "display.html",
}

__all__ = ["draw_png", "plot_target_evolution", "plot_topk_tokens", "prompts_to_df", "write_html"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"nnterp_mcp.{_HOMES[name]}"), name)
