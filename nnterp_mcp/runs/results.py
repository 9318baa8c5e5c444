"""Reads the results of runs and their tables, also those that another version wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

from nnterp_mcp.contract import Answer, Result, ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import TABLES, RunStore
from nnterp_mcp.runs.tables import ResultTables, encode_tables

logger = logging.getLogger(__name__)

Tools = Mapping[str, ToolSpec[Any, Any, Any]]
"""The tools by name."""


def read_result(store: RunStore, record: RunRecord, tools: Tools) -> Result:
    """A run's whole result.

    Raises:
        InvalidRequest: There is none, it is damaged, or another version wrote it that this one cannot read.
    """
    spec, content = tools.get(record.tool), store.read_result(record)
    try:
        if spec is not None:
            return spec.result.model_validate_json(content)
    except ValidationError:
        pass
    writer = record.environment.versions.get("nnterp-mcp") if record.environment else None
    raise InvalidRequest(
        f"the result of {record.id} was written by nnterp-mcp {writer}, and {version('nnterp-mcp')} cannot read it.",
        "part='record' shows its parameters, to run it again.",
        f"nnterp-mcp runs show {record.id} --part record shows its parameters, to run it again.",
    )


def write_tables(store: RunStore, run_id: str, result: Result, answer: Answer) -> bytes:
    """Writes the tables of a stored result and its answer next to it, and returns them.

    A run without them loses nothing: they are made again of the result.
    """
    content = encode_tables(result, {"answer": answer.model_dump(), "of": store.result_stamp(run_id)})
    try:
        store.write_file(run_id, TABLES, content)
    except OSError as error:
        logger.warning("the tables of %s could not be stored: %s", run_id, error)
    return content


def read_tables(store: RunStore, record: RunRecord, tools: Tools) -> ResultTables:
    """The tables of a run's result, and its answer.

    Raises:
        InvalidRequest: It has no result that can be read.
    """
    try:
        tables = ResultTables.at(store.file_path(record.id, TABLES))
    except (OSError, ValueError, KeyError):
        tables = None
    if record.tool not in tools or tables is None or tables.facts["of"] != store.result_stamp(record.id):
        result = read_result(store, record, tools)
        tables = ResultTables(write_tables(store, record.id, result, tools[record.tool].summarize(result)))
    return tables


def stored_answer(tables: ResultTables, spec: ToolSpec[Any, Any, Any]) -> Answer | None:
    """The answer that a run's tool gave, None where this version has another form for it."""
    try:
        return spec.answer.model_validate(tables.facts["answer"])
    except ValidationError:
        return None
