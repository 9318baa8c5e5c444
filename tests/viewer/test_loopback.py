"""`nnterp-mcp view` in a real browser."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect

from tests.commands.test_view import viewed
from tests.recorded import Recorded
from tests.viewer.opened import asked, opened


@pytest.mark.parametrize("name", ["lens", "attention", "attribution"])
def test_a_run_is_read_from_where_the_page_came(name: str, recorded: Recorded, browser: Browser) -> None:
    with viewed(recorded.store, recorded.ids[name]) as address, opened(browser) as watched:
        watched.page.goto(address)
        watched.page.locator(".all").wait_for()
        watched.page.locator(".all summary").click()
        watched.page.get_by_role("combobox", name="Part").select_option("record")

        expect(watched.page.get_by_role("region", name="record")).to_contain_text(recorded.ids[name])
        assert set(asked(watched)) == {address, f"{address}read_run"}


def test_a_server_that_ended_is_told(recorded: Recorded, browser: Browser) -> None:
    with opened(browser) as watched:
        with viewed(recorded.store, recorded.ids["lens"]) as address:
            watched.page.goto(address)
            watched.page.locator(".all").wait_for()
        watched.page.locator(".all summary").click()

        expect(watched.page.locator(".all .trouble")).to_contain_text("Failed to fetch")
        watched.complaints.clear()  # the browser's own word on it
