"""The page as a file that holds its run, in a real browser: to the eye, by keys, and to a screen reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Locator, Page, expect

from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.viewer.page import page_with
from nnterp_mcp.viewer.snapshot import snapshot
from tests.recorded import EXAMPLES, Recorded
from tests.viewer.kept import CLOSING, MARKUP, attention_run, attribution_run, circuit_run, lens_run
from tests.viewer.opened import asked, has_grid, opened

Saved = Callable[[RunStore, str], str]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Writes a run's page to a file, and gives its address."""

    def save(store: RunStore, run_id: str) -> str:
        file = tmp_path / f"{run_id}.html"
        file.write_text(page_with(snapshot(store, run_id)[0]), encoding="utf-8")
        return file.as_uri()

    return save


def grid(page: Page) -> Locator:
    return page.get_by_role("grid").first


def selected(page: Page) -> Locator:
    return grid(page).locator('[aria-selected="true"]')


def status(page: Page) -> Locator:
    return page.locator(".selected").first


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_run_is_shown_and_nothing_is_fetched(
    name: str, recorded: Recorded, browser: Browser, saved: Saved
) -> None:
    run_id = recorded.ids[name]
    answer = snapshot(recorded.store, run_id)[0]["answer"]
    address = saved(recorded.store, run_id)

    with opened(browser, offline=True) as watched:
        page = watched.page
        page.goto(address)
        page.locator(".all").wait_for()

        assert page.locator("#finding").inner_text() == answer["finding"]
        assert page.locator("#status").inner_text() == ""
        assert has_grid(name) <= bool(page.get_by_role("grid").count())
        assert page.locator("[role=grid], .panel, .plain tbody tr").count() > 0
        assert asked(watched) == [address]


def test_the_lens_shows_every_layer_and_position(recorded: Recorded, browser: Browser, saved: Saved) -> None:
    run_id = recorded.ids["lens"]
    result = json.loads(recorded.store.read_result(recorded.store.read(run_id)))
    readings = [reading for reading in result["readings"] if reading["prompt"] == 1]

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(recorded.store, run_id))
        page.get_by_label("Prompt").select_option(index=1)
        page.get_by_role("columnheader", name=json.dumps(readings[1]["token"], ensure_ascii=False)).wait_for()

        cells = grid(page).get_by_role("gridcell").all()
        names = [cell.get_attribute("aria-label") for cell in cells]
        expected = [
            f"Layer {reading['layers'][row]['layer']}, position {reading['position']} "
            f"{json.dumps(reading['token'], ensure_ascii=False)}: "
            f"{json.dumps(reading['layers'][row]['top'][0][0], ensure_ascii=False)} "
            for row in reversed(range(len(readings[0]["layers"])))
            for reading in readings
        ]
        assert len(names) == len(expected) > 4
        assert all(name and name.startswith(begin) for name, begin in zip(names, expected, strict=True))


def test_arrow_keys_move_the_selected_cell(recorded: Recorded, browser: Browser, saved: Saved) -> None:
    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(recorded.store, recorded.ids["attention"]))
        selected(page).focus()
        page.keyboard.press("Control+Home")
        expect(status(page)).to_contain_text("Layer 2, head 0:")
        page.keyboard.press("ArrowRight")
        expect(status(page)).to_contain_text("Layer 2, head 1:")
        page.keyboard.press("ArrowDown")
        expect(status(page)).to_contain_text("Layer 1, head 1:")
        page.keyboard.press("ArrowDown")  # there is none below
        expect(status(page)).to_contain_text("Layer 1, head 1:")
        page.keyboard.press("End")
        expect(status(page)).to_contain_text("Layer 1, head 3:")

        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        expect(page.get_by_role("heading", name="Pattern of L1H3")).to_be_visible()


def test_a_grid_is_one_stop_of_the_tab_key(recorded: Recorded, browser: Browser, saved: Saved) -> None:
    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(recorded.store, recorded.ids["steering"]))
        page.locator(".all").wait_for()
        stops: list[str] = []
        for _ in range(8):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.tagName"))

        assert stops[: stops.index("BODY")] == ["SELECT", "SELECT", "TD", "SUMMARY", "SUMMARY"]


def test_a_screen_reader_hears_roles_names_and_the_selection(
    recorded: Recorded, browser: Browser, saved: Saved
) -> None:
    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(recorded.store, recorded.ids["patching"]))
        page.locator(".all").wait_for()
        tree = grid(page).aria_snapshot()

        assert 'grid "Activation patching at layers_output: ' in tree
        assert 'columnheader "position 0' in tree
        assert 'rowheader "layer 1"' in tree
        (chosen,) = [line for line in tree.splitlines() if "[selected]" in line]
        assert json.dumps(status(page).inner_text(), ensure_ascii=False)[1:-1] in chosen
        assert status(page).get_attribute("aria-live") == "polite"
        assert int(grid(page).get_attribute("aria-rowcount") or 0) == 1 + grid(page).get_by_role("rowheader").count()


def test_hovering_says_what_a_cell_holds(recorded: Recorded, browser: Browser, saved: Saved) -> None:
    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(recorded.store, recorded.ids["patching"]))
        cell = grid(page).get_by_role("gridcell").nth(3)
        cell.hover()

        expect(page.locator(".tooltip").first).to_have_text(cell.get_attribute("aria-label") or "")


def test_a_pattern_is_what_was_kept(recorded: Recorded, browser: Browser, saved: Saved) -> None:
    run_id = recorded.ids["attention"]
    card = recorded.store.read(run_id).arrays["attention_0"]
    head = card.axes["head"].index("L1H0")
    kept = recorded.store.read_array(run_id, "attention_0", (slice(head, head + 1), slice(None), slice(None)))[0]

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(recorded.store, run_id))
        grid(page).get_by_role("gridcell", name="Layer 1, head 0:").click()
        page.get_by_role("heading", name="Pattern of L1H0").wait_for()
        pattern = page.locator(".pattern")
        cells = pattern.locator("td").all()

        assert len(cells) == kept.size
        for cell, value in zip(cells, kept.reshape(-1).tolist(), strict=True):
            text = cell.inner_text()
            assert (float(text) if text else 0.0) == pytest.approx(value, abs=0.0051)


def test_tokens_stay_text(tmp_path: Path, browser: Browser, saved: Saved) -> None:
    store = RunStore(tmp_path / "runs")
    run = lens_run(store, [MARKUP, CLOSING, "\u200b", "\n"])

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(store, run.id))
        page.locator(".all").wait_for()
        page.locator(".all summary").click()
        page.get_by_role("region", name="readings").wait_for()
        first = grid(page).get_by_role("gridcell").first
        first.hover()

        assert first.inner_text().replace("␣", " ") == MARKUP
        assert MARKUP in page.locator(".tooltip").first.inner_text().replace('\\"', '"')
        assert [cell.inner_text() for cell in grid(page).get_by_role("gridcell").all()[2:4]] == ["U+200B", "⏎"]
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2  # its data and its own


def test_many_positions_are_drawn_a_window_at_a_time(tmp_path: Path, browser: Browser, saved: Saved) -> None:
    store = RunStore(tmp_path / "runs")
    run = lens_run(store, [f"t{place} " for place in range(400)], layers=6)

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(store, run.id))
        expect(status(page)).to_contain_text('Layer 5, position 399 "t399 "')
        assert grid(page).get_by_role("gridcell").count() <= 64 * 48
        assert grid(page).get_attribute("aria-colcount") == "401"

        selected(page).focus()
        page.keyboard.press("Home")
        expect(status(page)).to_contain_text('position 0 "t0 "')
        expect(selected(page)).to_be_focused()
        page.get_by_role("button", name="next columns").click()
        expect(status(page)).to_contain_text('position 48 "t48 "')


def test_a_large_pattern_is_read_as_far_as_it_is_looked_at(tmp_path: Path, browser: Browser, saved: Saved) -> None:
    store = RunStore(tmp_path / "runs")
    pattern = np.tril(np.random.default_rng(0).random((12, 100, 100), dtype=np.float32))
    run = attention_run(store, pattern)

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(store, run.id))
        grid(page).get_by_role("gridcell").nth(1).click()  # L0H1, whose name L0H10 and L0H11 begin with
        page.get_by_role("heading", name="Pattern of L0H1", exact=True).wait_for()
        below = page.locator(".pattern")
        for keys, query, key in (("Control+End", 99, 99), ("Control+Home", 0, 0), ("PageDown", 10, 0)):
            below.locator('[aria-selected="true"]').focus()
            page.keyboard.press(keys)
            says = f'L0H1, position {query} "t{query}" to position {key} "t{key}": {pattern[1, query, key]:.3g}'
            expect(below.locator(".selected")).to_have_text(says)
            assert below.get_by_role("gridcell").count() <= 64 * 48


def test_attribution_shows_every_head(tmp_path: Path, browser: Browser, saved: Saved) -> None:
    store = RunStore(tmp_path / "runs")
    heads = np.random.default_rng(0).normal(size=(3, 12)) * 3
    run = attribution_run(store, heads)

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(store, run.id))
        page.locator(".all").wait_for()
        cells = grid(page).get_by_role("gridcell").all()
        shown = [float(cell.inner_text().replace("−", "-") or 0) for cell in cells]
        layer, head = divmod(int(np.abs(heads).argmax()), 12)

        assert shown == pytest.approx(heads[::-1].reshape(-1).tolist(), abs=0.0501)
        expect(status(page)).to_have_text(f"layer {layer}, head {head}: {heads[layer, head]:.3g}")
        expect(page.get_by_text("Outside the layers: embeddings 1.")).to_be_visible()


def test_the_focused_cell_is_never_under_a_header(tmp_path: Path, browser: Browser, saved: Saved) -> None:
    store = RunStore(tmp_path / "runs")
    run = lens_run(store, [f"token{place} " for place in range(45)], layers=50)

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(store, run.id))
        selected(page).focus()
        for key in ("PageUp", "PageUp", "PageUp", "ArrowLeft", "Home", "Control+Home", "Control+End", "Home"):
            page.keyboard.press(key)
            assert page.evaluate(UNCOVERED), key


UNCOVERED = """() => {
  const cell = document.activeElement, box = cell.getBoundingClientRect();
  const corners = [[box.left + 2, box.top + 2], [box.right - 2, box.top + 2], [box.left + 2, box.bottom - 2]];
  return cell.tagName === "TD" && corners.every(([x, y]) => cell.contains(document.elementFromPoint(x, y)));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["lens", "attention", "patching", "steering", "prompt set", "probe"])
def test_text_can_be_read_in_light_and_dark(
    name: str, scheme: str, recorded: Recorded, browser: Browser, saved: Saved
) -> None:
    """Every text and every cell has a contrast of at least 4.5 (WCAG 2.2, AA), as the browser computes colours."""
    with opened(browser, color_scheme=scheme) as watched:
        page = watched.page
        page.goto(saved(recorded.store, recorded.ids[name]))
        page.locator(".all").wait_for()

        assert page.evaluate(WORST_CONTRAST) >= 4.5


WORST_CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const painted = (...colors) => {
    pen.clearRect(0, 0, 1, 1);
    for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (color) => {
    const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((level) => linear(level / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const layers = (node) => (node ? [...layers(node.parentElement), getComputedStyle(node).backgroundColor] : []);
  const contrast = (node) => {
    const behind = layers(node);
    const one = luminance(painted(...behind)), other = luminance(painted(...behind, getComputedStyle(node).color));
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  };
  const texts = [...document.querySelectorAll("body *")].filter((node) =>
    node.checkVisibility() && !node.disabled && !node.closest(".white, script") &&
    [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.textContent.trim()));
  return Math.min(...texts.map(contrast));
}"""


CROSSED = """() => {
  const nodes = [...document.querySelectorAll(".network g")];
  const boxes = nodes.map((node) => [node.textContent, node.firstChild.getBBox()]);
  return [...document.querySelectorAll(".network path")].flatMap((path) => {
    const said = path.textContent;
    const points = [...Array(101).keys()].map((at) => path.getPointAtLength((at / 100) * path.getTotalLength()));
    return boxes
      .filter(([name]) => !said.startsWith(`${name} →`) && !said.includes(`→ ${name}`))
      .filter(([, { x, y, width, height }]) =>
        points.some((point) => point.x > x && point.x < x + width && point.y > y && point.y < y + height))
      .map(([name]) => `${said} through ${name}`);
  });
}"""


def test_a_circuit_is_a_graph_in_which_each_edge_is_seen(tmp_path: Path, browser: Browser, saved: Saved) -> None:
    store = RunStore(tmp_path / "runs")
    edges = [
        ("L0H1", "L1H2 queries", 1.5),
        ("L0H1", "L1H2 keys", -1.0),
        ("L0H1", "L1H2 values", -0.5),
        ("embeddings", "L0H1 values", 2.0),
        ("L1H2", "MLP 1", -0.7),
        ("MLP 1", "logits", 1.0),
        ("L0H1", "L2H0 keys", 0.3),
        ("L2H0", "logits", 0.2),
    ]
    run = circuit_run(store, edges)

    with opened(browser) as watched:
        page = watched.page
        page.goto(saved(store, run.id))
        page.locator(".all").wait_for()
        drawn = page.locator(".network path")
        ways = drawn.evaluate_all("all => all.map(path => path.getAttribute('d'))")
        said = drawn.evaluate_all("all => all.map(path => path.textContent)")
        colours = drawn.evaluate_all("all => all.map(path => path.style.stroke)")

        values = [str(score).replace("-", "−").removesuffix(".0") for _, _, score in edges]
        names = [f"{one} → {other}: {value}" for (one, other, _), value in zip(edges, values, strict=True)]
        assert said == names[::-1]
        assert colours == [f"var(--{'lowers' if score < 0 else 'raises'})" for _, _, score in reversed(edges)]
        assert len(set(ways)) == len(edges)
        # Straight, the edge from L0H1 to L2H0 would run behind L1H2.
        assert page.evaluate(CROSSED) == []
        page.locator(".chart + details summary").first.click()
        assert page.get_by_role("table", name="strongest edges").get_by_role("row").count() == len(edges) + 1
