"""A page in a browser, watched: what it asks of the network, what it complains of."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page

from nnterp_mcp.viewer.page import explored_tools
from tests.recorded import EXAMPLES

QUIET = ("about:", "data:", "blob:")
"""Addresses that no network is asked for."""


@dataclass
class Opened:
    """A page.

    Attributes:
        page: The page.
        requests: Addresses that were asked for.
        complaints: Errors and warnings of the console, uncaught errors, and dialogs.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, **context: Any) -> Generator[Opened]:
    """A new page, in a context of its own; what goes wrong in it fails the test."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}, **context).new_page()
    watched = Opened(page)

    def on_dialog(dialog: Any) -> None:
        watched.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            watched.complaints.append(message.text)

    page.on("dialog", on_dialog)
    page.on("console", on_console)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    page.set_default_timeout(30_000)
    try:
        yield watched
        assert watched.complaints == []
    finally:
        page.context.close()


def has_grid(name: str) -> bool:
    """Whether an example is shown as a grid: by its figure, or by a view, for which neurons are too many."""
    tool, arguments = EXAMPLES[name]
    return name in ("vector", "sampling") or (tool in explored_tools() and arguments.get("by") != "neuron")


def asked(watched: Opened) -> list[str]:
    """What was asked of the network."""
    return [address for address in watched.requests if not address.startswith(QUIET)]
