"""Result and answer of `read_run`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from nnterp_mcp.contract import Answer, Result
from nnterp_mcp.table import Kind, TableField
from nnterp_mcp.toolset.read_run.params import Format


class ReadRunResult(Result):
    """A page of a table of a run."""

    run_id: str
    part: str
    table: TableField
    offset: int
    total: int
    format: Format


class ReadRunAnswer(Answer):
    """The same as an agent sees it."""

    table: TableField
    same: Annotated[dict[str, Any], Field(description="Columns that are equal in all rows.")]
    total: int
    truncated: bool
    format: Format

    @property
    def exact(self) -> bool:
        """CSV and JSON are for computing with."""
        return self.format != "table"

    def body(self) -> list[str]:
        """The rows in the format that was asked for, after the columns that are equal in all of them."""
        same = ", ".join(f"{name} {Kind.RAW.text(value)}" for name, value in self.same.items())
        rows = {"csv": self.table.csv, "json": self.table.json_lines}.get(self.format, self.table.text)()
        return [f"in every row: {same}" if same else "", rows]
