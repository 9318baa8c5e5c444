"""The figures of runs, drawn from their records on the first request and cached in the run's folder."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from nnterp_mcp.display.figure import Array, Figure
from nnterp_mcp.errors import Internal, NnterpError, Unsupported
from nnterp_mcp.runs.records import RunError, RunRecord
from nnterp_mcp.runs.results import Tools, read_result
from nnterp_mcp.runs.store import RunStore

logger = logging.getLogger(__name__)

REFUSED = 3
"""The exit code of a drawing process that writes an error."""

_LARGE = 2_000_000
"""Bytes of a result that a process of its own reads and draws: parsing it would hold this one up."""

PICTURE = "figure.png"
PAGE = "figure.html"
DATA = "figure"
"""The part under which the viewer reads a figure."""


def figure_of(store: RunStore, record: RunRecord, tools: Tools) -> Figure:
    """A run's figure.

    Raises:
        Unsupported: Its tool has none, or this run has nothing that can be drawn.
        InvalidRequest: The run has no result that can be read.
    """
    spec = tools.get(record.tool)
    if spec is None or spec.figure is None:
        drawn = ", ".join(name for name, one in tools.items() if one.figure is not None)
        raise Unsupported(f"{record.id} has no picture: {record.tool} draws none", f"Tools that do: {drawn}.")
    return spec.figure(read_result(store, record, tools), _Arrays(store, record))


def draw(store: RunStore, record: RunRecord, tools: Tools) -> bytes:
    """A run's picture, as PNG; the interactive page is written with it.

    Raises:
        Unsupported: The run has no picture.
        InvalidRequest: The run has no result that can be read.
        Internal: It could not be drawn.
    """
    kept = store.read_file(record.id, PICTURE)
    if kept is not None and _page(store, record) is not None:
        return kept
    stamp = store.result_stamp(record.id)
    try:
        return _draw_apart(store, record) if stamp and stamp[0] > _LARGE else draw_here(store, record, tools)
    except NnterpError:
        raise
    except Exception as error:  # whatever a result holds, its numbers are not lost with its picture
        logger.error("[%s] %s", record.id, type(error).__name__, exc_info=error)
        raise Internal(
            f"the picture of {record.id} could not be drawn ({type(error).__name__}; log id {record.id})",
            "Its numbers are not affected: read_run has them all.",
        ) from error


def read_figure(store: RunStore, record: RunRecord, name: str, tools: Tools) -> bytes:
    """A run's picture, or its interactive page as HTML.

    Raises:
        NnterpError: As `draw`; or the page cannot be written.
    """
    picture = draw(store, record, tools)
    if name == PICTURE:
        return picture
    page = _page(store, record)
    if page is None:
        raise Internal(f"the page of {record.id} could not be kept", "Make room for runs.")
    return page


def figure_text(store: RunStore, record: RunRecord, tools: Tools) -> str:
    """A run's figure as JSON for the viewer; without panels where it has none or cannot be drawn."""
    from nnterp_mcp.display.bundle import data_of
    from nnterp_mcp.display.html import write_html

    try:
        stamp = store.result_stamp(record.id)
        if stamp and stamp[0] > _LARGE:
            page = read_figure(store, record, PAGE, tools).decode()
        else:
            page = write_html(figure_of(store, record, tools))
        data = data_of(page) or {}
    except NnterpError:
        data = {}
    except Exception as error:  # as in `draw`
        logger.error("[%s] %s", record.id, type(error).__name__, exc_info=error)
        data = {}
    return json.dumps(data.get("figure", {"panels": [], "notes": []}), ensure_ascii=False, separators=(",", ":"))


def _page(store: RunStore, record: RunRecord) -> bytes | None:
    """A run's page as it is kept; None for one of an earlier version, which is written anew."""
    from nnterp_mcp.display.bundle import data_of

    page = store.read_file(record.id, PAGE)
    return page if page is not None and data_of(page.decode()) is not None else None


def where(record: RunRecord) -> str:
    """The note with the addresses of the figure."""
    return f"Picture: run://{record.id}/{PICTURE}; interactive: run://{record.id}/{PAGE}, also in the run's folder."


def _draw_apart(store: RunStore, record: RunRecord) -> bytes:
    command = [sys.executable, "-m", "nnterp_mcp.commands.draw", str(store.folder), record.id]
    drawn = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if drawn.returncode == REFUSED:
        raise RunError.model_validate_json(drawn.stdout).error()
    drawn.check_returncode()
    return drawn.stdout


def draw_here(store: RunStore, record: RunRecord, tools: Tools) -> bytes:
    """Draws a run's picture and page in this process; returns the picture.

    Raises:
        Unsupported: The run has no picture.
        InvalidRequest: The run has no result that can be read.
    """
    from nnterp_mcp.display.html import write_html
    from nnterp_mcp.display.png import draw_png  # matplotlib takes a second to import

    figure = figure_of(store, record, tools)
    picture = draw_png(figure)
    try:
        store.write_file(record.id, PAGE, write_html(figure).encode())
        store.write_file(record.id, PICTURE, picture)
    except OSError as error:
        logger.warning("the figure of %s could not be kept: %s", record.id, error)
    return picture


class _Arrays(Mapping[str, Array]):
    """A run's arrays, read lazily from disk."""

    def __init__(self, store: RunStore, record: RunRecord) -> None:
        self._store = store
        self._record = record

    def __getitem__(self, name: str) -> Array:
        if name not in self._record.arrays:
            raise KeyError(name)
        return _Array(self._store, self._record.id, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._record.arrays)

    def __len__(self) -> int:
        return len(self._record.arrays)


class _Array:
    def __init__(self, store: RunStore, run_id: str, name: str) -> None:
        self._store = store
        self._run_id = run_id
        self._name = name

    def __getitem__(self, index: int, /) -> Any:
        return self._store.read_array(self._run_id, self._name, (slice(index, index + 1),))[0]
