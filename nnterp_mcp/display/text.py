"""Text in pictures: its width, and the characters that the font has."""

from __future__ import annotations

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path

from nnterp_mcp.display.figure import ordered

_FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans SC", "Malgun Gothic", "Apple SD Gothic Neo"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew", "Noto Sans Arabic", "Arial Unicode MS"),
)
"""Fonts for other scripts, by preference; those that are installed are used."""

_INSTALLED = {entry.name for entry in fontManager.ttflist}

FAMILIES = ("DejaVu Sans", *(name for name in _FALLBACKS if name in _INSTALLED))
"""The font that comes with matplotlib, then those for the characters that it lacks."""


def font(size: float, bold: bool = False) -> FontProperties:
    """The fonts at a size in points."""
    return FontProperties(family=FAMILIES, size=size, weight="bold" if bold else "normal")


@cache
def _written() -> frozenset[int]:
    """The characters that some font has."""
    found = [FontProperties(family=name, weight=weight) for name in FAMILIES for weight in ("normal", "bold")]
    return frozenset(code for one in found for code in FT2Font(findfont(one)).get_charmap())


def legible(text: str) -> str:
    """Text in one line with every character in the font: others are written as `\\u4e2d`, as in code."""
    return "".join(char if char.isprintable() and ord(char) in _written() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def literal(text: str) -> str:
    """Legible text with dollar signs escaped, which matplotlib would take for formulas."""
    return ordered(legible(text).replace("$", "\\$"))


@cache
def width(text: str, size: float, bold: bool = False) -> float:
    """How wide a text is, in inches."""
    if not text:
        return 0.0
    return text_to_path.get_text_width_height_descent(legible(text), font(size, bold), False)[0] / 72


def fitted(text: str, room: float, size: float, bold: bool = False) -> str:
    """Cuts a text to a width in inches; at least its first character stays."""
    text = legible(text)
    if width(text, size, bold) <= room:
        return text
    kept = max(1, min(len(text) - 1, int(len(text) * room / width(text, size, bold))))
    while kept > 1 and width(f"{text[:kept]}…", size, bold) > room:
        kept -= 1
    return f"{text[:kept]}…"


def wrapped(text: str, room: float, size: float, most: int) -> list[str]:
    """Wraps a text to a width in inches and a number of lines; the last line is elided."""
    lines: list[str] = []
    rest = legible(text)
    while rest and len(lines) < most:
        if width(rest, size) <= room or len(lines) == most - 1:
            lines.append(fitted(rest, room, size))
            break
        line = fitted(rest, room, size).removesuffix("…")
        line = line.rsplit(" ", 1)[0] if " " in line.strip() else line
        lines.append(line)
        rest = rest[len(line) :].lstrip(" ")
    return lines
