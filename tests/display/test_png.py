"""Pictures: small enough, legible, and drawn whatever a token is."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from nnterp_mcp.display.figure import Bar, Bars, Colours, Curve, Curves, Figure, Heatmap, Panel
from nnterp_mcp.display.png import LARGEST, LONGEST, draw_png

TEXTS = st.text(max_size=40)


def grid(rows: int, columns: int, label: str | None = None, name: str = "n") -> Heatmap:
    values = [[(row * columns + column) / (rows * columns) for column in range(columns)] for row in range(rows)]
    labels = None if label is None else [[label] * columns] * rows
    names = [f"{name}{at}" for at in range(max(rows, columns))]
    return Heatmap(name, name, name, names[:columns], names[:rows], values, Colours(name, 0, 1), labels)


def lines(name: str, count: int = 3, points: int = 30) -> Curves:
    x = list(range(points))
    low, high = [0.1] * points, [0.4] * points
    curves = [Curve(f"{name}{at}", x, [at / count] * points, low, high) for at in range(count)]
    return Curves(name, name, name, [*curves, Curve(name, x, low, role="control")], {-1.0: name})


def beams(name: str, count: int = 5) -> Bars:
    return Bars(name, name, [Bar(f"{name}{at}", at - 2, at - 3, at, mark=at / 2) for at in range(count)], mark=name)


def decoded(picture: bytes) -> np.ndarray:
    assert len(picture) <= LARGEST
    image = Image.open(io.BytesIO(picture))
    image.load()
    assert image.format == "PNG"
    assert max(image.size) <= LONGEST
    return np.asarray(image.convert("RGB"))


def draw(*panels: Panel, text: str = "a prompt", columns: int = 2) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decoded(draw_png(Figure(text, text, panels, columns, [text])))


@settings(max_examples=6)
@given(TEXTS)
@example("$\\frac{1}{2}$ and $")
@example("\\$ _ ^ {")
@example("中文 🏛 \u200b\ud800\x00\n\t")
@example("_hidden")
@example("W" * 2000)
@example("")
def test_any_text_is_drawn_without_a_warning(text: str) -> None:
    picture = draw(grid(2, 2, text, text), lines(text), beams(text), text=text)

    assert (picture < 128).any()


@pytest.mark.parametrize(
    "panel",
    [
        grid(1, 1),
        grid(1, 1, "a"),
        grid(100, 3, "token"),
        grid(3, 60, "token"),
        grid(300, 300),
        lines("a", 1, 1),
        lines("a curve with a long name ", 12, 200),
        beams("b", 1),
        beams("a bar with a very long name indeed, longer than most", 120),
    ],
)
def test_any_size_fits(panel: Panel) -> None:
    draw(panel)


def test_many_panels_fit() -> None:
    draw(*[grid(60, 4, "token"), lines("a"), beams("b", 40)] * 3, columns=3)


def test_noise_is_brought_below_the_limit() -> None:
    values = np.random.default_rng(0).random((400, 400)).tolist()
    panel = Heatmap("noise", "x", "y", ["c"] * 400, ["r"] * 400, values, Colours("v", 0, 1))

    draw(panel)


def test_what_is_nothing_is_told_from_what_is_small() -> None:
    """Cells without a value have a colour of their own, which no value has."""
    colours = Colours("v", 0, 1)
    values = [[0.0, None], [float("nan"), 1.0]]
    picture = draw(Heatmap("t", "x", "y", ["a", "b"], ["c", "d"], values, colours))
    nothing = (picture == 0xEE).all(-1).sum()
    both = draw(Heatmap("t", "x", "y", ["a", "b"], ["c", "d"], [[0.0, 0.0], [0.0, 1.0]], colours))

    assert nothing > 1000
    assert (both == 0xEE).all(-1).sum() < nothing / 10


def test_values_beyond_the_scale_have_its_ends() -> None:
    """A grid of values far beyond looks as one of the ends themselves."""

    def inner(value: float) -> np.ndarray:
        panel = Heatmap("t", "x", "y", ["a"], ["b"], [[value]], Colours("v", 0, 1))
        picture = draw(panel)
        return picture[picture.shape[0] // 2, 100]

    assert (inner(7.0) == inner(1.0)).all()
    assert (inner(-7.0) == inner(0.0)).all()
    assert (inner(0.0) != inner(1.0)).any()


def test_many_threads_draw_the_same() -> None:
    figure = Figure("t", "s", [grid(4, 4, "tok"), lines("a")])
    with ThreadPoolExecutor(4) as threads:
        pictures = list(threads.map(lambda _: draw_png(figure), range(4)))

    assert len(set(pictures)) == 1
