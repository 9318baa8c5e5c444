"""A headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _find() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a browser where there is none, before runs are made for it."""
    if _find() is not None:
        return
    reason = f"no Chromium on this machine (looked for {', '.join(_NAMES)}; Debian's package is chromium)"
    for item in items:
        if Path(__file__).parent in item.path.parents and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """The system's own browser; its event loop lies in this thread, so that it ends with the module."""
    from playwright.sync_api import sync_playwright

    found = _find()
    with sync_playwright() as playwright:
        # A container's root has no sandbox of Chromium's; the pages are ours.
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
