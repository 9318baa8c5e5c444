"""The page in a host of MCP Apps, in a real browser, with a real server behind the host."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from mcp_types import CallToolResult
from playwright.sync_api import Browser, FrameLocator, Page, expect

from tests.recorded import EXAMPLES, Recorded
from tests.serving import Caller, stdio, text, until
from tests.viewer.opened import asked, has_grid, opened

HOST = Path(__file__).with_name("host.html")
DARK = {"theme": "dark", "styles": {"variables": {"--color-background-primary": "rgb(1, 2, 3)", "--evil": "1px"}}}


def plain(result: CallToolResult) -> dict[str, Any]:
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


class Hosted:
    """A host with the viewer in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.view: FrameLocator = page.frame_locator("#view")

    def tell(self, method: str, **params: Any) -> None:
        self.page.evaluate("([method, params]) => tell(method, params)", [method, params])

    def ask(self, method: str) -> dict[str, Any]:
        return self.page.evaluate("([method, params]) => ask(method, params)", [method, {}])

    @property
    def heard(self) -> dict[str, Any]:
        return self.page.evaluate("heard")

    def status(self) -> Any:
        return self.view.locator("#status")


@contextmanager
def hosted(
    browser: Browser, caller: Caller, call: Callable[..., Any] | None = None, **context: Any
) -> Generator[Hosted]:
    """Shows the page as a host does: read from the server, in a sandbox, under the strictest policy."""
    (content,) = caller.read("ui://nnterp/viewer.html").contents
    with opened(browser, offline=True) as watched:
        page = watched.page
        page.expose_function("callTool", call or (lambda tool, arguments: plain(caller.call(tool, **arguments))))
        page.set_content(HOST.read_text())
        page.evaluate("([html, context]) => show(html, context)", [content.text, context])
        host = Hosted(page)
        yield host
        assert host.heard["errors"] == []
        assert asked(watched) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_is_shown_and_the_rest_read(name: str, recorded: Recorded, browser: Browser) -> None:
    run_id = recorded.ids[name]
    answer = recorded.caller.call("read_run", run_id=run_id)
    with hosted(browser, recorded.caller) as host:
        host.tell("ui/notifications/tool-input", arguments={})
        host.tell("ui/notifications/tool-result", **plain(answer))
        host.view.locator(".all").wait_for()

        assert host.view.locator("#finding").inner_text() == answer.structured_content["finding"]
        grids = host.view.get_by_role("grid")
        assert bool(grids.count()) == has_grid(name)
        assert {call["name"] for call in host.heard["calls"]} <= {"read_run"}
        assert {call["arguments"]["run_id"] for call in host.heard["calls"]} <= {run_id}


def test_the_handshake_says_who_is_there(recorded: Recorded, browser: Browser) -> None:
    with hosted(browser, recorded.caller) as host:
        heard = host.heard["initialize"]

        assert heard["protocolVersion"] == "2026-01-26"
        assert heard["appInfo"]["name"] == "nnterp-viewer"
        assert heard["appCapabilities"]["availableDisplayModes"] == ["inline", "fullscreen"]
        expect(host.status()).to_have_text("Waiting for a result …")
        assert host.ask("ping")["result"] == {}
        assert host.ask("ui/resource-teardown")["result"] == {}
        assert host.ask("ui/unheard-of")["error"]["code"] == -32601


def test_it_tells_its_size(recorded: Recorded, browser: Browser) -> None:
    with hosted(browser, recorded.caller) as host:
        host.page.wait_for_function("heard.sizes.length > 0")
        small = host.heard["sizes"][-1]["height"]
        host.tell(
            "ui/notifications/tool-result", **plain(recorded.caller.call("read_run", run_id=recorded.ids["lens"]))
        )
        host.page.wait_for_function(f"heard.sizes.at(-1).height > {small}")


def test_it_wears_the_host_s_theme(recorded: Recorded, browser: Browser) -> None:
    look = "getComputedStyle(document.documentElement)"
    with hosted(browser, recorded.caller, **DARK) as host:
        frame = host.page.frames[1]
        assert frame.evaluate(f"[{look}.backgroundColor, {look}.colorScheme]") == ["rgb(1, 2, 3)", "dark"]
        assert frame.evaluate(f"{look}.getPropertyValue('--evil')") == ""

        host.tell("ui/notifications/host-context-changed", theme="light")
        frame.wait_for_function(f"{look}.colorScheme === 'light'")


def test_it_asks_for_the_whole_screen_where_there_is_one(recorded: Recorded, browser: Browser) -> None:
    with hosted(browser, recorded.caller, availableDisplayModes=["inline", "fullscreen"]) as host:
        host.view.get_by_role("button", name="Full screen").click()
        expect(host.view.locator("#enlarge")).to_be_hidden()
    with hosted(browser, recorded.caller) as host:
        expect(host.view.locator("#enlarge")).to_be_hidden()


@pytest.mark.slow
def test_a_call_that_goes_on_is_followed(tiny: Callable[..., Path], tmp_path: Path, browser: Browser) -> None:
    """A server that answers late: the page waits with `read_run`, and shows the run when it is done."""
    with stdio(data=tmp_path, reply_within=0.01) as caller:
        until(lambda: "still loading" not in text(caller.call("load_model", model=str(tiny("llama")))))
        late = caller.call("logit_lens", prompts="The capital of France is")
        assert late.structured_content["state"] in ("queued", "running")
        with hosted(browser, caller) as host:
            host.tell("ui/notifications/tool-result", **plain(late))
            expect(host.view.get_by_role("grid")).to_be_visible(timeout=60_000)

            assert "predicts" in host.view.locator("#finding").inner_text()


def test_what_cannot_be_read_leaves_the_answer(recorded: Recorded, browser: Browser) -> None:
    """A host that lets the page call no tool: its answer's own table is shown, and why."""

    def refuse(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": "the user declined"}], "isError": True}

    answer = plain(recorded.caller.call("read_run", run_id=recorded.ids["patching"]))
    with hosted(browser, recorded.caller, refuse) as host:
        host.tell("ui/notifications/tool-result", **answer)
        host.view.locator(".all").wait_for()

        assert "the user declined" in host.status().inner_text()
        rows = host.view.locator(".plain").first.locator("tbody tr")
        assert rows.count() == len(answer["structuredContent"]["table"]["rows"])


def test_failures_are_told(recorded: Recorded, browser: Browser) -> None:
    refused = recorded.caller.call("logit_lens", prompts="x", layers=99)
    with hosted(browser, recorded.caller) as host:
        host.tell("ui/notifications/tool-result", **plain(refused))
        expect(host.status()).to_contain_text("layer 99 does not exist")
        host.tell("ui/notifications/tool-cancelled", reason="by the user")
        expect(host.status()).to_have_text("The call was cancelled. by the user")


def test_a_later_answer_takes_the_place_of_an_earlier_one(recorded: Recorded, browser: Browser) -> None:
    answers = [plain(recorded.caller.call("read_run", run_id=recorded.ids[name])) for name in ("attention", "lens")]
    with hosted(browser, recorded.caller) as host:
        for answer in answers:
            host.tell("ui/notifications/tool-result", **answer)
        expect(host.view.get_by_role("grid")).to_have_count(1)
        expect(host.view.locator(".run")).to_have_text(f"run {recorded.ids['lens']}")
        expect(host.view.get_by_role("grid")).to_have_attribute(
            "aria-label", "Logit lens: the top token by layer and position"
        )
