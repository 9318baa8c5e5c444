"""Pages: whole in one file, without a connection, small, and harmless whatever a token is."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnterp_mcp.display import style
from nnterp_mcp.display.data import figure_data
from nnterp_mcp.display.figure import Curves, Figure, Heatmap, Passages
from nnterp_mcp.display.html import write_html
from nnterp_mcp.formatting import escaped
from tests.display.test_png import beams, grid, lines


class Page(HTMLParser):
    """The tags of a page, its policy and the data that it carries."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, Any] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][1].get("id") == "run" and not self.data:
            self.data = json.loads(data)


def figure(text: str) -> Figure:
    return Figure(
        text, text, [grid(2, 2, text, text), lines(text), beams(text), Passages(text, [(text, text)])], 2, [text]
    )


@settings(max_examples=6)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example('</script><script src="https://example.org/x.js"></script>')
@example('<img src=x onerror="alert(1)"><a href="https://example.org">')
@example("%{x} {{title}} {{ }} $a$")
@example("\x1b[2J \u202e\x00")
def test_a_page_holds_any_text_and_no_more(text: str) -> None:
    page = Page(write_html(figure(text)))

    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(write_html(figure("a"))).tags]
    assert not any({"src", "onerror"} & attributes.keys() for _, attributes in page.tags)
    assert page.data["figure"]["title"] == escaped(text)


def test_a_page_is_small_and_forbids_every_connection() -> None:
    page = write_html(figure("a"))
    (policy,) = [attributes["content"] for _, attributes in Page(page).tags if "http-equiv" in attributes]

    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert len(page) < 60_000


def test_pages_have_the_colours_of_pictures() -> None:
    page = write_html(figure("a"))

    for stops in (style.SEQUENTIAL, style.DIVERGING):
        assert json.dumps(stops) in page
    assert all(f"--series-{at}: light-dark({colour}, " in page for at, colour in enumerate(style.PALETTE))


def test_a_page_carries_every_number() -> None:
    heat, curves = grid(3, 4), lines("c", 2, 5)
    assert isinstance(heat, Heatmap)
    assert isinstance(curves, Curves)
    data = figure_data(Figure("", "", [heat, curves, beams("b", 4)]))
    drawn, courses, bars = data["panels"]

    assert [panel["kind"] for panel in data["panels"]] == ["heatmap", "curves", "bars"]
    assert drawn["values"] == [[float(f"{value:.5g}") for value in row] for row in heat.values if row]  # type: ignore
    assert [(curve["name"], curve["y"]) for curve in courses["curves"]] == [
        (curve.name, list(curve.y)) for curve in curves.curves
    ]
    assert [curve["series"] for curve in courses["curves"]] == [0, 1, None]
    assert re.fullmatch(r"b\d", bars["bars"][0]["name"])
