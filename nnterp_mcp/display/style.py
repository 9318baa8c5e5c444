"""The style of figures in PNG and HTML: colours for colour-blind readers, and contrast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from nnterp_mcp.display.figure import Curve

INK = "#1a1a1a"
FAINT = "#595959"
"""Of notes and controls; 7 : 1 on white."""
GRID = "#dddddd"
BLANK = "#eeeeee"
"""Cells without a value."""

PALETTE = ("#0072b2", "#d55e00", "#332288", "#009e73", "#882255", "#b8568b", "#000000", "#117733")
"""Colours of curves, after Okabe and Ito (2008) and Tol (2021), those left out that have less than 3 : 1 on white."""

SEQUENTIAL = "cividis"
"""Nuñez, Anderton and Renslow (2018): alike to people with and without colour-vision deficiency."""
DIVERGING = "RdBu_r"
"""Brewer: red and blue, which stay apart in every common deficiency."""


def luminance(red: float, green: float, blue: float) -> float:
    """The relative luminance of a colour (WCAG 2), its parts from 0 to 1."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def ink_on(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has the greater contrast; that is never less than 4.5 : 1."""
    return "black" if luminance(red, green, blue) > 0.1791 else "white"


DASHES = (("--", "dash"), (":", "dot"), ("-.", "dashdot"))
"""Of controls that belong to no curve, which are grey alike: as matplotlib and as plotly write them."""


def colours_of(curves: Sequence[Curve]) -> dict[str, str]:
    """Each curve's colour, by its name: a control has that of its curve, or grey."""
    palette = cycle(PALETTE)
    found = {curve.name: next(palette) for curve in curves if curve.role == "measured"}
    return found | {curve.name: found.get(curve.of or "", FAINT) for curve in curves if curve.role == "control"}


def dashes_of(curves: Sequence[Curve]) -> dict[str, tuple[str, str]]:
    """The dash style of each control, by its name."""
    apart = cycle(DASHES)
    return {curve.name: next(apart) if curve.of is None else DASHES[0] for curve in curves if curve.role == "control"}
