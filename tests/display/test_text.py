"""Text in pictures: every character legible, and no wider than its room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.ft2font import FT2Font

from nnterp_mcp.display.figure import ordered
from nnterp_mcp.display.text import FAMILIES, fitted, legible, literal, width, wrapped


@given(st.text(max_size=60))
def test_legible_text_is_in_the_font_and_in_one_line(text: str) -> None:
    from matplotlib.font_manager import findfont

    known = {code for family in FAMILIES for code in FT2Font(findfont(family)).get_charmap()}
    shown = legible(text)

    assert all(ord(char) in known for char in shown)
    assert shown.isprintable()
    assert not shown.isascii() or text.isprintable() or "\\" in shown


def test_what_the_font_cannot_write_is_escaped_as_in_code() -> None:
    assert legible("é ␣ → « ∑ Ж") == "é ␣ → « ∑ Ж"
    assert legible("\n\t\x00\U0001f9ff\ud800") == "\\n\\t\\x00\\U0001f9ff\\ud800"
    assert legible("中") == ("\\u4e2d" if FAMILIES == ("DejaVu Sans",) else "中")


@given(st.text(max_size=60), st.floats(0.2, 4))
def test_fitted_text_fits_or_is_a_single_character(text: str, room: float) -> None:
    shown = fitted(text, room, 8.5)

    assert width(shown, 8.5) <= room or len(shown) <= 2
    assert shown == legible(text) or shown.endswith("…")


@given(st.text(max_size=200), st.integers(1, 4))
def test_wrapped_text_loses_nothing_without_saying_so(text: str, most: int) -> None:
    lines = wrapped(text, 2.0, 8.5, most)
    whole = "".join(lines).replace(" ", "")

    assert len(lines) <= most
    assert whole == legible(text).replace(" ", "") or whole.endswith("…")


@given(st.text("$\\a{}^_", max_size=20))
def test_no_text_is_a_formula(text: str) -> None:
    from matplotlib.cbook import is_math_text
    from matplotlib.text import Text

    written = literal(text)
    shown, mode = Text(text=written)._preprocess_math(written)

    assert not is_math_text(written)
    assert not mode
    assert shown == legible(text)


def test_bytes_and_positions_keep_their_place_next_to_letters_read_from_the_right() -> None:
    assert ordered(" Paris (4)") == " Paris (4)"
    mark = "\u200e"
    assert ordered("ב<0xD7> (9)") == f"{mark}ב{mark}<0xD7>{mark}{mark} (9){mark}"
    assert literal("שלום") == f"{mark}שלום"
