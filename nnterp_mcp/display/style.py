"""The style of figures, the same in PNG and on pages: colours for colour-blind readers, and contrast."""

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

PALETTE_ON_DARK = ("#56b4e9", "#f5863c", "#a99be8", "#2fc99a", "#e07aa8", "#d890bf", "#ffffff", "#7fd08f")
"""The same hues on a dark page."""


def _stops(colours: str) -> list[str]:
    """Colours at equal steps of a scale."""
    return [f"#{colour}" for colour in colours.split()]


SEQUENTIAL = _stops(
    "00224e 002e6a 1a386f 32436d 434e6c 535a6d 61656f 6f7073 7d7c78 "
    "8c8878 9b9476 aba072 bcae6c cdbb63 dec958 f0d846 fee838"
)
"""Cividis (Nuñez, Anderton and Renslow, 2018): alike to people with and without colour-vision deficiency."""
DIVERGING = _stops("053061 2065ab 4393c3 90c4dd d1e5f0 f7f6f6 fddbc7 f3a481 d6604d b1182b 67001f")
"""Brewer's blue and red, which stay apart in every common deficiency: blue lowers, red raises."""
LOWERS, RAISES = DIVERGING[1], DIVERGING[8]
"""Of bars with a sign."""


def luminance(red: float, green: float, blue: float) -> float:
    """The relative luminance of a colour (WCAG 2), its parts from 0 to 1."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def ink_on(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has the greater contrast; that is never less than 4.5 : 1."""
    return "black" if luminance(red, green, blue) > 0.1791 else "white"


DASHES = ("--", ":", "-.")
"""Of controls that belong to no curve, which are grey alike, as matplotlib writes them."""


def series_of(curves: Sequence[Curve]) -> dict[str, int | None]:
    """Each curve's place in the palette, by its name: a control has that of its curve, or None for grey."""
    palette = cycle(range(len(PALETTE)))
    found = {curve.name: next(palette) for curve in curves if curve.role == "measured"}
    return found | {curve.name: found.get(curve.of or "") for curve in curves if curve.role == "control"}


def colours_of(curves: Sequence[Curve]) -> dict[str, str]:
    """Each curve's colour on white, by its name."""
    return {name: FAINT if place is None else PALETTE[place] for name, place in series_of(curves).items()}


def dashes_of(curves: Sequence[Curve]) -> dict[str, str]:
    """The dash style of each control, by its name."""
    apart = cycle(DASHES)
    return {curve.name: next(apart) if curve.of is None else DASHES[0] for curve in curves if curve.role == "control"}
