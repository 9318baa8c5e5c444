"""Pages: whole in one file, without a connection, and harmless whatever a token is."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
from plotly.io._utils import plotly_cdn_url
from plotly.offline import get_plotlyjs

from nnterp_mcp.display import html
from nnterp_mcp.display.figure import Bars, Curves, Figure, Heatmap
from nnterp_mcp.display.html import chart_of, without_library, write_html
from nnterp_mcp.formatting import escaped
from tests.display.test_png import beams, grid, lines


class Page(HTMLParser):
    """The tags of a page, and the text that is no script."""

    def __init__(self, page: str, library: str | None = None) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        library = library or get_plotlyjs()
        assert page.count(library) == 1
        self.feed(page.replace(library, ""))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def figure(text: str) -> Figure:
    return Figure(text, text, [grid(2, 2, text, text), lines(text), beams(text)], 2, [text])


@cache
def small(text: str) -> Page:
    """The page of a figure, with one line for the library, which takes long to copy and is the same in every page."""
    with patch.object(html, "get_plotlyjs", lambda: "/* plotly */"):
        return Page(write_html(figure(text)), "/* plotly */")


@settings(max_examples=6)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example('</script><script src="https://example.org/x.js"></script>')
@example('<img src=x onerror="alert(1)"><a href="https://example.org">')
@example("%{x} {title} {{ }} $a$")
@example("\x1b[2J \u202e\x00")
def test_a_page_holds_any_text_and_no_more(text: str) -> None:
    page = small(text)
    plain = [tag for tag, _ in small("a").tags]

    assert page.open == []
    assert [tag for tag, _ in page.tags] == plain
    assert not any({"src", "href", "onerror"} & attributes.keys() for _, attributes in page.tags)
    words = escaped(text).split()
    assert words == " ".join(page.text).split()[: len(words)]


def test_a_page_forbids_every_connection() -> None:
    page = Page(write_html(figure("a")))
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]

    assert page.open == []
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert len(write_html(figure("a"))) < 6_000_000


def test_plotly_takes_no_token_for_markup() -> None:
    """Plotly writes some tags as markup; those of a token are escaped wherever it reads text."""
    token = "<b>x</b>"
    panels = (grid(1, 1, token, token), lines(token), beams(token))

    for panel in panels:
        chart = chart_of(panel).to_dict()
        chart["layout"].pop("template")
        texts = re.findall(r'"([^"]*x[^"]*)"', json.dumps(chart, default=list))
        assert any("&lt;b&gt;" in text for text in texts)
        assert not any("<b>" in text for text in texts)


def test_charts_hold_every_number() -> None:
    heat, curves, bars = grid(3, 4), lines("c", 2, 5), beams("b", 4)
    assert isinstance(heat, Heatmap)
    assert isinstance(curves, Curves)
    assert isinstance(bars, Bars)

    assert [list(row) for row in chart_of(heat).data[0].z] == heat.values
    drawn = [trace for trace in chart_of(curves).data if trace.fill is None]
    assert [(trace.name, list(trace.y)) for trace in drawn] == [(curve.name, list(curve.y)) for curve in curves.curves]
    assert list(chart_of(bars).data[0].x) == [bar.value for bar in bars.bars]
    assert list(chart_of(bars).data[1].x) == [bar.mark for bar in bars.bars]


def test_a_page_without_its_library_loads_that_very_one_and_nothing_else() -> None:
    from plotly.io import to_html

    page = without_library(write_html(figure("a")))
    (own,) = re.findall(r'integrity="(.*?)"', to_html({"data": []}, include_plotlyjs="cdn"))

    assert re.findall(r'src="([^"]*)" integrity="([^"]*)"', page) == [(plotly_cdn_url(), own)]
    assert "script-src 'unsafe-inline' https://cdn.plot.ly;" in page
    assert len(page) < 100_000
