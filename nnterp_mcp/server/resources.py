"""MCP resources: the documents of the server, and of each run its answer, record, result, figures and arrays."""

from __future__ import annotations

import base64
import re
from typing import Any

import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from nnterp_mcp.errors import InvalidRequest, LimitExceeded, NnterpError
from nnterp_mcp.fields import shown
from nnterp_mcp.render import size
from nnterp_mcp.server import apps, documents, replies
from nnterp_mcp.server.pages import first_page
from nnterp_mcp.session import figures
from nnterp_mcp.session.faults import masked
from nnterp_mcp.session.records import RunRecord
from nnterp_mcp.session.runs import late
from nnterp_mcp.session.session import Session
from nnterp_mcp.session.store import RunStore
from nnterp_mcp.toolset.read_run.handle import read_answer

Context = ServerRequestContext[Any]
Contents = TextResourceContents | BlobResourceContents

LISTED = 20
"""Runs that `resources/list` names; every run can be read."""

LARGEST = 16_000_000
"""Bytes of a resource before it is encoded: it travels as one message, which clients hold in memory."""

_ADDRESS = re.compile(r"run://(?P<run_id>[^/?#]+)(?:/(?P<part>[^/?#]+))?/?")

_TEMPLATES = (
    ("run://{run_id}", "run", "The answer of a run, as its tool gave it", "text/markdown"),
    ("run://{run_id}/record", "record", "A run's parameters, versions, hashes and times", "application/json"),
    ("run://{run_id}/result", "result", "A run's whole result", "application/json"),
    ("run://{run_id}/figure.png", "picture", "A run as a picture", "image/png"),
    ("run://{run_id}/figure.html", "figure", "A run as an interactive page, whole in one file", "text/html"),
    ("run://{run_id}/{array}", "array", "An array that a run kept", "application/octet-stream"),
)

_FIGURES = {figures.PICTURE: "image/png", figures.PAGE: "text/html"}


class Resources:
    """The resources of a server.

    Args:
        session: What the server holds.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def _store(self) -> RunStore:
        return self._session.runs.store

    async def list(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        """The documents, and the latest runs."""
        first_page(params)
        records = await anyio.to_thread.run_sync(self._store.latest, LISTED)
        return ListResourcesResult(resources=[*documents.DOCUMENTS, *map(_entry, records)])

    async def list_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        """The addresses that every tool and every run has."""
        first_page(params)
        return ListResourceTemplatesResult(
            resource_templates=[
                *documents.TEMPLATES,
                *(
                    ResourceTemplate(uri_template=template, name=name, title=title, mime_type=kind)
                    for template, name, title, kind in _TEMPLATES
                ),
            ]
        )

    async def read(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        """What stands at an address; a run that is under way is not waited for."""
        try:
            return ReadResourceResult(contents=[await self._read(params.uri)])
        except NnterpError as error:
            raise MCPError(INVALID_PARAMS, replies.worded(error), {"uri": params.uri}) from None
        except Exception as error:
            raise MCPError(INTERNAL_ERROR, replies.worded(masked(error))) from None

    async def _read(self, address: str) -> Contents:
        if address.startswith(documents.SCHEME):
            return _text(address, documents.read(address), "text/markdown")
        if address == apps.VIEWER:
            return await anyio.to_thread.run_sync(apps.viewer)
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise InvalidRequest(
                f"there is no resource {shown(address)}: addresses are "
                + ", ".join([*documents.ADDRESSES, *(template for template, *_ in _TEMPLATES)])
                + "."
            )
        run_id, part = found["run_id"], found["part"]
        live = self._session.runs.find(run_id)
        if live is not None and part is None:
            return _text(address, replies.written(late(live)), "text/markdown")
        record = await anyio.to_thread.run_sync(self._store.read, run_id)
        return await anyio.to_thread.run_sync(_read_part, self._store, record, address, part)


def _entry(record: RunRecord) -> Resource:
    when = record.opened[:16].replace("T", " ")
    return Resource(
        uri=f"run://{record.id}",
        name=record.id,
        title=f"{record.tool} on {record.model}, {record.state}, {when}",
        mime_type="text/markdown",
    )


def _read_part(store: RunStore, record: RunRecord, address: str, part: str | None) -> Contents:
    if part is None:
        return _text(address, replies.written(read_answer(store, record)), "text/markdown")
    if part == "record":
        return _text(address, record.model_dump_json(indent=2), "application/json")
    if part == "result":
        return _text(address, _within_limit(store.read_result(record), address).decode(), "application/json")
    if part in _FIGURES:
        content = _within_limit(figures.read(store, record, part), address)
        if part == figures.PAGE:
            return _text(address, content.decode(), _FIGURES[part])
        return _blob(address, content, _FIGURES[part])
    if part not in record.arrays:
        names = ", ".join(["record", "result", *_FIGURES, *record.arrays])
        raise InvalidRequest(f"{record.id} has no part {shown(part)}: its parts are {names}.")
    path = store.array_path(record.id, part)
    try:
        _check_size(path.stat().st_size, address)
        content = path.read_bytes()
    except OSError:
        raise InvalidRequest(f"the array {part!r} of {record.id} is gone.", "Run the experiment again.") from None
    return _blob(address, content, "application/octet-stream")


def _within_limit(content: bytes, address: str) -> bytes:
    _check_size(len(content), address)
    return content


def _check_size(count: int, address: str) -> None:
    if count > LARGEST:
        raise LimitExceeded(
            f"{address} has {size(count)}, and a resource at most {size(LARGEST)}",
            "read_run gives the rows that are asked for, with where, columns, offset and limit.",
        )


def _blob(address: str, content: bytes, kind: str) -> BlobResourceContents:
    return BlobResourceContents(uri=address, blob=base64.b64encode(content).decode(), mime_type=kind)


def _text(address: str, text: str, kind: str) -> TextResourceContents:
    return TextResourceContents(uri=address, text=text, mime_type=kind)
