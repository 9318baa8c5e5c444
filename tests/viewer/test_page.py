"""The page itself: whole in one file, and closed to all but its own script and style."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nnterp_mcp.toolset import specs
from nnterp_mcp.viewer.page import PageSource, explored_tools, page, page_with, policy, viewed_tools


class Elements(HTMLParser):
    """The elements of a page with their attributes and the text within."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[-1][2].append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("source", ["host", "server", "page"])
def test_a_page_asks_for_nothing(source: PageSource) -> None:
    elements = Elements(page(source))

    for tag, attributes, _ in elements.found:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form")
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    addresses = set(re.findall(r"\w+://[^\s\"'`)]+", page(source)))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a namespace, which nothing fetches


@pytest.mark.parametrize("source", ["host", "server", "page"])
def test_its_policy_names_its_own_script_and_style_alone(source: PageSource) -> None:
    elements = Elements(page(source))
    ((_, script),) = elements.of("script")
    ((_, style),) = elements.of("style")
    (said,) = [
        attributes["content"]
        for attributes, _ in elements.of("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]

    rules = dict(rule.split(" ", 1) for rule in policy(source).split("; "))
    assert said == policy(source)
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == digest(script)
    assert rules["style-src"] == digest(style)
    assert rules["connect-src"] == ("'self'" if source == "server" else "'none'")


def test_no_module_writes_markup() -> None:
    """Texts of tokenizers become text nodes alone."""
    package = files("nnterp_mcp")
    modules = [*package.joinpath("viewer").iterdir()]
    modules += [package.joinpath("toolset", name, "view.js") for name in explored_tools()]
    scripts = [module.read_text() for module in modules if module.name.endswith(".js")]

    assert len(scripts) > len(explored_tools())
    for script in scripts:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|Function\(", script
        )


def test_the_tools_with_a_view_are_those_that_have_one_in_their_folder() -> None:
    folders = files("nnterp_mcp").joinpath("toolset")

    assert explored_tools() == {name for name in specs() if folders.joinpath(name, "view.js").is_file()}
    assert viewed_tools() > explored_tools() >= {"logit_lens", "patchscope", "attention_probs", "patch_activations"}
    assert {"train_probe", "collect_activations", "run_prompts"} <= viewed_tools()


@given(st.recursive(st.text() | st.sampled_from(["</script>", "<!--", "<script>", "\u2028"]), st.lists))
def test_data_comes_back_whole_and_ends_no_element(content: object) -> None:
    elements = Elements(page_with({"answer": content}))

    (data, script) = elements.of("script")
    assert data[0] == {"type": "application/json", "id": "run"}
    assert json.loads(data[1]) == {"answer": content}
    assert script[1] == Elements(page("page")).of("script")[0][1]
