"""Reads the results of runs, also those that another version wrote."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

from nnterp_mcp.contract import Result, ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import RunStore


def read_result(store: RunStore, record: RunRecord, tools: Mapping[str, ToolSpec[Any, Any, Any]]) -> Result:
    """A run's whole result.

    Args:
        store: The runs.
        record: The run.
        tools: The tools by name.

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
    )
