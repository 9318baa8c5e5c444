"""Draws a figure as an interactive HTML page: one file, without network access."""

from __future__ import annotations

from functools import cache

from nnterp_mcp.display.bundle import bundled, page_of
from nnterp_mcp.display.data import figure_data
from nnterp_mcp.display.figure import Figure


def write_html(figure: Figure) -> str:
    """Writes a figure as a page.

    Returns:
        Self-contained HTML whose policy forbids the browser to load anything else.
    """
    return page_of(_script(), "page", {"figure": figure_data(figure)})


@cache
def _script() -> str:
    return bundled("viewer/figure_page.js", {})
