"""Figures for people: a notebook shows them, and they are written to files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from nnterp_mcp.display.figure import Figure
from nnterp_mcp.display.html import write_html
from nnterp_mcp.display.png import draw_png
from nnterp_mcp.errors import InvalidRequest


class Picture(Figure):
    """A figure that a notebook draws."""

    @classmethod
    def of(cls, figure: Figure) -> Picture:
        """The same figure, to look at."""
        return cls(**{field.name: getattr(figure, field.name) for field in fields(figure)})

    def save(self, path: str | Path) -> None:
        """Writes the figure as a PNG file, or as a page.

        Args:
            path: A file that ends in `.png` or `.html`.

        Raises:
            InvalidRequest: It ends in something else.
        """
        path = Path(path)
        if path.suffix == ".png":
            path.write_bytes(draw_png(self))
        elif path.suffix == ".html":
            path.write_text(write_html(self), encoding="utf-8")
        else:
            raise InvalidRequest(f"a figure is written as .png or .html, not as {path.suffix or 'no kind of file'!r}.")

    def __repr__(self) -> str:
        return f"<Picture: {', '.join(panel.title for panel in self.panels)}>"

    def _repr_png_(self) -> bytes:
        return draw_png(self)
