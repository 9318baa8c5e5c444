"""Reads answers and pages of tables from the records of runs, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnterp_mcp.contract import Answer
from nnterp_mcp.errors import InvalidRequest, NnterpError
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.runs import figures
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.results import read_result, read_tables, stored_answer
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.tables import (
    EVERY_RUN,
    FACT_COLUMNS,
    TableRow,
    as_table,
    columns_of_array,
    facts_of,
    filter_facts,
    name_parts,
    read_array,
)
from nnterp_mcp.toolset import specs
from nnterp_mcp.toolset.read_run.params import ReadRunParams
from nnterp_mcp.toolset.read_run.result import ReadRunResult


def read(store: RunStore, params: ReadRunParams) -> ReadRunResult | Answer:
    """Reads the requested part of a run on disk, whichever process wrote it.

    Raises:
        InvalidRequest: There is no such run or part, or what was kept is damaged.
        NnterpError: The run did not finish and kept nothing: what it raised.
    """
    (run_id,) = params.run_id
    record = store.read(run_id)
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
    answer.notes.append(name_parts(tables, record.arrays))
    return answer


def list_runs(store: RunStore, run_ids: Sequence[str], under_way: Mapping[str, str]) -> ReadRunResult:
    """Several runs, each with its state and with what it found, or how far it is.

    Args:
        store: The runs on disk.
        run_ids: The runs.
        under_way: For those that have not ended, how far they are.

    Raises:
        InvalidRequest: There is no such run.
    """
    rows: list[TableRow] = []
    for run_id in run_ids:
        record = store.read(run_id)
        said = under_way.get(run_id) or _found(store, record)
        state = "running" if run_id in under_way else record.state
        rows.append({"run": run_id, "tool": record.tool, "model": record.model, "state": state, "finding": said})
    table = as_table(rows, list(rows[0]))
    return ReadRunResult(run_id="", part="runs", table=table, offset=0, total=len(rows), format="table")


def _found(store: RunStore, record: RunRecord) -> str:
    try:
        return read_answer(store, record).finding
    except NnterpError as error:
        return error.message


def _rows(store: RunStore, record: RunRecord, params: ReadRunParams) -> tuple[list[TableRow], list[str], int]:
    """The rows of a page, the columns of the part, and how many rows it has in all."""
    part = params.part
    if part in record.arrays:
        card = record.arrays[part]
        rows, total = read_array(store, record.id, part, card, params.where, params.offset, params.limit)
        return rows, columns_of_array(part, card), total
    if part == figures.DATA:  # for the viewer
        rows = [{part: figures.figure_text(store, record, specs())}]
        return rows[params.offset :], [part], 1
    if part == "record":
        facts = facts_of(record.model_dump(mode="json"))
    else:
        tables = read_tables(store, record, specs())
        if part in tables.counts:
            rows, total = tables.page(part, params.where, params.offset, params.limit)
            return rows, tables.columns(part), total
        if part != "result":
            parts = ", ".join(["answer", *tables.counts, *record.arrays, *EVERY_RUN])
            raise InvalidRequest(f"{record.id} has no part {shown(part)}: its parts are {parts}.")
        facts = facts_of(tables.facts["result"])
    chosen = filter_facts(facts, params.where)
    return chosen[params.offset : params.offset + params.limit], FACT_COLUMNS, len(chosen)
