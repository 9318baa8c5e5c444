"""A headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """The system's own browser; its event loop lies in this thread, so that it ends with the module."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(_NAMES)}; Debian's package is chromium)")
    with sync_playwright() as playwright:
        # A container's root has no sandbox of Chromium's; the pages are ours.
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
