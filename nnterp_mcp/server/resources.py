"""MCP resources: the documents of the server, and of each run its answer, record, result, figures and arrays."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from nnterp_mcp.formatting import escaped, plural, size
from nnterp_mcp.pool.faults import masked
from nnterp_mcp.pool.live_runs import late
from nnterp_mcp.pool.reading import read_answer
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.runs import figures
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.server import apps, documents, replies, skills
from nnterp_mcp.server.hints import FIXED
from nnterp_mcp.server.skills import Skills
from nnterp_mcp.toolset import specs

_Context = ServerRequestContext[Any]
Contents = TextResourceContents | BlobResourceContents

LISTED = 20
"""Runs that `resources/list` names; every run can be read."""

PIECE = 480_000
"""Bytes of a resource before encoding: it is sent as one message, and clients refuse messages beyond 1 MiB."""

_ADDRESS = re.compile(r"run://(?P<run_id>[^/?#]+)(?:/(?P<part>[^/?#]+)(?:/(?P<piece>[1-9][0-9]{0,5}))?)?/?")

_TEMPLATES = (
    (
        "run://{run_id}",
        "run",
        "The answer of a run, as its tool gave it",
        "What the call found, in words and tables; {run_id} stands in every answer.",
        "text/markdown",
    ),
    (
        "run://{run_id}/record",
        "record",
        "A run's parameters, versions, hashes and times",
        "All that is needed to make the call again and compare.",
        "application/json",
    ),
    (
        "run://{run_id}/result",
        "result",
        "A run's whole result",
        "Every number, before anything was left out of the answer.",
        "application/json",
    ),
    (
        "run://{run_id}/figure.png",
        "picture",
        "A run as a picture",
        "The figure that plot=true puts beside an answer.",
        "image/png",
    ),
    (
        "run://{run_id}/figure.html",
        "figure",
        "A run as an interactive page",
        "The figure with its numbers under the pointer, in light and dark; it loads nothing.",
        "text/html",
    ),
    (
        "run://{run_id}/{array}",
        "array",
        "An array that a run kept",
        "States or patterns as they were kept; the record names the arrays and their axes.",
        "application/octet-stream",
    ),
    (
        "run://{run_id}/{part}/{piece}",
        "piece",
        "A piece of a part that is too large for one message",
        "Pieces count from 1; joined in order they are the part.",
        "application/octet-stream",
    ),
)

_FIGURES = {figures.PICTURE: "image/png", figures.PAGE: "text/html"}


class Resources:
    """The resources of a server.

    Args:
        session: The server's session.
        skills: The skills that it serves.
    """

    def __init__(self, session: Session, skills: Skills) -> None:
        self._session = session
        self._skills = skills

    @property
    def _store(self) -> RunStore:
        return self._session.runs.store

    async def list(self, context: _Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        """The documents, the skills and the latest runs."""
        replies.first_page(params)
        records = await anyio.to_thread.run_sync(self._store.latest, LISTED)
        return ListResourcesResult(resources=[*documents.DOCUMENTS, *self._skills.resources, *map(_entry, records)])

    async def list_templates(
        self, context: _Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        """The addresses that every tool and every run has."""
        replies.first_page(params)
        return ListResourceTemplatesResult(
            resource_templates=[
                *documents.TEMPLATES,
                *(
                    ResourceTemplate(uri_template=template, name=name, title=title, description=said, mime_type=kind)
                    for template, name, title, said, kind in _TEMPLATES
                ),
            ]
        )

    async def read(self, context: _Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        """Reads a resource; does not wait for a run in progress."""
        try:
            if (fixed := await anyio.to_thread.run_sync(self._read_fixed, params.uri)) is not None:
                return ReadResourceResult(contents=[fixed], ttl_ms=FIXED.ttl_ms, cache_scope=FIXED.scope)
            return ReadResourceResult(contents=[await self._read(params.uri)])
        except NnterpError as error:
            raise MCPError(INVALID_PARAMS, replies.worded(error), {"uri": params.uri}) from None
        except Exception as error:
            raise MCPError(INTERNAL_ERROR, replies.worded(masked(error))) from None

    def _read_fixed(self, address: str) -> Contents | None:
        """Contents that stay the same as long as the server runs; None at other addresses."""
        if address.startswith(documents.SCHEME):
            return _text(address, documents.read_document(address), "text/markdown")
        if address == apps.VIEWER:
            return apps.viewer()
        text = self._skills.find(address)
        return None if text is None else _text(address, text, skills.KIND)

    async def _read(self, address: str) -> Contents:
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise InvalidRequest(
                f"there is no resource {shown(address)}: addresses are "
                + ", ".join([*documents.ADDRESSES, skills.ADDRESS, *(template for template, *_ in _TEMPLATES)])
                + "."
            )
        run_id, part, piece = found["run_id"], found["part"], found["piece"]
        live = self._session.runs.find(run_id)
        if live is not None and part is None:
            return _text(address, replies.written(late(live)), "text/markdown")
        record = await anyio.to_thread.run_sync(self._store.read, run_id)
        if part is None:
            answer = await anyio.to_thread.run_sync(read_answer, self._store, record)
            return _text(address, replies.written(answer), "text/markdown")
        number = None if piece is None else int(piece)
        return await anyio.to_thread.run_sync(_read_part, self._store, record, address, part, number)


def _entry(record: RunRecord) -> Resource:
    when = record.opened[:16].replace("T", " ")
    return Resource(
        uri=f"run://{record.id}",
        name=record.id,
        title=f"{record.tool} on {record.model}, {record.state}, {when}",
        description=f"The answer of a call of {record.tool} on {record.model}, begun {when}.",
        mime_type="text/markdown",
    )


def _read_part(store: RunStore, record: RunRecord, address: str, part: str, piece: int | None) -> Contents:
    """A part that is small enough for one message, or a piece of it."""
    content = _part(store, record, part)
    count = max(1, -(-content.size // PIECE))
    if piece is None and count > 1:
        raise LimitExceeded(
            f"{address} has {size(content.size)}, and one message takes {size(PIECE)}",
            f"Read its {count} pieces, {address}/1 to {address}/{count}, and join them; or read_run gives the rows "
            "that are asked for.",
        )
    if piece is not None and piece > count:
        raise InvalidRequest(f"there is no {address}: the part has {plural(count, 'piece')}, from 1.")
    begin = ((piece or 1) - 1) * PIECE
    if content.kind.startswith(("text/", "application/json")):
        return _text(address, escaped(content.text(begin, begin + PIECE)), content.kind)
    return _blob(address, content.read(begin, begin + PIECE), content.kind)


@dataclass(frozen=True)
class _Part:
    """A part of a run.

    Attributes:
        kind: Its MIME type.
        size: Its bytes.
        read: Reads those from one place to another.
    """

    kind: str
    size: int
    read: Callable[[int, int], bytes]

    def text(self, begin: int, end: int) -> str:
        """The characters that begin between two places."""
        read = self.read(begin, end + 3)
        first = next((at for at, byte in enumerate(read) if byte & 0xC0 != 0x80), 0) if begin else 0
        last = end - begin
        while last < len(read) and read[last] & 0xC0 == 0x80:
            last += 1
        return read[first:last].decode()


def _part(store: RunStore, record: RunRecord, part: str) -> _Part:
    if part == "record":
        return _held(record.model_dump_json(indent=2).encode(), "application/json")
    if part == "result":
        return _stored(store.find_result(record), "application/json")
    if part in _FIGURES:
        content = figures.read_figure(store, record, part, specs())
        return _held(content, _FIGURES[part])
    if part not in record.arrays:
        names = ", ".join(["record", "result", *_FIGURES, *record.arrays])
        raise InvalidRequest(f"{record.id} has no part {shown(part)}: its parts are {names}.")
    try:
        return _stored(store.array_path(record.id, part), "application/octet-stream")
    except OSError:
        raise InvalidRequest(f"the array {part!r} of {record.id} is gone.", "Run the experiment again.") from None


def _stored(path: Path, kind: str) -> _Part:
    """A part that lies in a file, of which only the piece that is asked for is read."""

    def read(begin: int, end: int) -> bytes:
        with path.open("rb") as source:
            source.seek(begin)
            return source.read(end - begin)

    read(0, 1)
    return _Part(kind, path.stat().st_size, read)


def _held(content: bytes, kind: str) -> _Part:
    return _Part(kind, len(content), lambda begin, end: content[begin:end])


def _blob(address: str, content: bytes, kind: str) -> BlobResourceContents:
    return BlobResourceContents(uri=address, blob=base64.b64encode(content).decode(), mime_type=kind)


def _text(address: str, text: str, kind: str) -> TextResourceContents:
    return TextResourceContents(uri=address, text=text, mime_type=kind)
