"""Reads answers and pages of tables from the records of runs, whoever made them."""

from __future__ import annotations

from nnterp_mcp.contract import Answer
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import plural
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.runs import figures
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.results import read_result, read_tables, stored_answer
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.tables import (
    FACT_COLUMNS,
    ResultTables,
    TableRow,
    as_table,
    columns_of_array,
    facts_of,
    filter_facts,
    read_array,
)
from nnterp_mcp.toolset import specs
from nnterp_mcp.toolset.read_run.params import ReadRunParams
from nnterp_mcp.toolset.read_run.result import ReadRunResult

_FACTS = ("result", "record")
"""Parts that every run has: what is no table in its result, and its record; one fact a row."""


def read(store: RunStore, params: ReadRunParams) -> ReadRunResult | Answer:
    """Reads the requested part of a run on disk, whichever process wrote it.

    Raises:
        InvalidRequest: There is no such run or part, or what was kept is damaged.
        NnterpError: The run did not finish and kept nothing: what it raised.
    """
    record = store.read(params.run_id)
    if params.part == "answer":
        answer = read_answer(store, record)
        if params.where or params.columns or params.offset:
            raise InvalidRequest(
                "where, columns and offset choose from the rows of a part, and part='answer' has none.",
                answer.notes[-1],
            )
        if params.format == "picture":
            answer.picture = figures.draw(store, record, specs())
            answer.notes.append(figures.where(record))
        return answer
    if params.format == "picture":
        raise InvalidRequest(f"a picture shows a whole run, not part={shown(params.part)}.", "Leave out part.")
    rows, columns, total = _rows(store, record, params)
    return ReadRunResult(
        run_id=record.id,
        part=params.part,
        table=as_table(rows, columns, params.columns),
        offset=params.offset,
        total=total,
        format=params.format,
    )


def read_answer(store: RunStore, record: RunRecord) -> Answer:
    """The answer that a run's tool gave, with the names of the parts that the run has.

    Raises:
        NnterpError: The run did not finish and kept nothing: what it raised.
        InvalidRequest: The result is gone or damaged.
    """
    if record.result_sha256 is None and record.error is not None:
        raise record.error.error()
    tables = read_tables(store, record, specs())
    spec = specs()[record.tool]
    answer = stored_answer(tables, spec) or spec.summarize(read_result(store, record, specs()))
    answer.run_id = record.id
    if record.partial and record.error is not None:
        answer.notes.append(f"Partial, for the run did not finish ({record.error.code}): {record.error.message}.")
    answer.notes.append(f"Parts for read_run: {', '.join(_parts(record, tables))}.")
    return answer


def _parts(record: RunRecord, tables: ResultTables) -> list[str]:
    rows = [f"{name} ({plural(count, 'row')})" for name, count in tables.counts.items()]
    arrays = [f"{name} ({' × '.join(card.axes)})" for name, card in record.arrays.items()]
    return [*rows, *arrays, *_FACTS]


def _rows(store: RunStore, record: RunRecord, params: ReadRunParams) -> tuple[list[TableRow], list[str], int]:
    """The rows of a page, the columns of the part, and how many rows it has in all."""
    part = params.part
    if part in record.arrays:
        card = record.arrays[part]
        rows, total = read_array(store, record.id, part, card, params.where, params.offset, params.limit)
        return rows, columns_of_array(part, card), total
    if part == "record":
        facts = facts_of(record.model_dump(mode="json"))
    else:
        tables = read_tables(store, record, specs())
        if part in tables.counts:
            rows, total = tables.page(part, params.where, params.offset, params.limit)
            return rows, tables.columns(part), total
        if part != "result":
            parts = ", ".join(["answer", *tables.counts, *record.arrays, *_FACTS])
            raise InvalidRequest(f"{record.id} has no part {shown(part)}: its parts are {parts}.")
        facts = facts_of(tables.facts["result"])
    chosen = filter_facts(facts, params.where)
    return chosen[params.offset : params.offset + params.limit], FACT_COLUMNS, len(chosen)
