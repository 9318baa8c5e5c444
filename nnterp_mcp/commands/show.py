"""`nnterp-mcp runs show`: one run as a person reads it, or one of its parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nnterp_mcp.formatting import elided, escaped, quoted, seconds, size
from nnterp_mcp.pool.reading import read, read_answer
from nnterp_mcp.runs.records import RunEnvironment, RunRecord
from nnterp_mcp.table import compact_json
from nnterp_mcp.toolset import specs
from nnterp_mcp.toolset.read_run.params import ReadRunParams
from nnterp_mcp.toolset.read_run.result import ReadRunResult

if TYPE_CHECKING:
    from nnterp_mcp.runs.store import RunStore

_LONGEST = 200
"""Characters of an argument that are shown; the part `record` has it whole."""

_WORDINGS = (
    (r"Parts for read_run:", "Parts for --part:"),
    (r"read_run part=", "nnterp-mcp runs show {run} --part "),
    (r"\boffset=(\d+)", r"--offset \1"),
    (r"format='json' shows them whole, fewer rows show more of each", "--json shows them whole"),
)
"""Tool calls that answers suggest to an agent, and the commands that do the same."""


def show(store: RunStore, run_id: str) -> str:
    """A run's facts, line by line, and its answer.

    Raises:
        InvalidRequest: There is no such run.
    """
    record = store.read(run_id)
    lines = [*_facts(record), f"on disk: {size(store.size(run_id))} in {store.folder / run_id}"]
    if store.is_pinned(run_id):
        lines[-1] += ", pinned"
    if record.result_sha256 is not None:
        lines += ["", _for_people(read_answer(store, record).text(), run_id)]
    return escaped("\n".join(lines))


def show_part(store: RunStore, run_id: str, part: str, offset: int, limit: int, as_json: bool) -> str:
    """A page of the rows of one part, as a table or as one line of JSON.

    Raises:
        InvalidRequest: There is no such run or part.
    """
    form = "json" if as_json else "table"
    asked = {"run_id": run_id, "part": part, "offset": offset, "limit": limit, "format": form}
    page = read(store, ReadRunParams.model_validate(asked))
    if not isinstance(page, ReadRunResult):
        return page.model_dump_json() if as_json else escaped(_for_people(page.text(), run_id))
    if as_json:
        return compact_json({"run_id": run_id, "part": part, "total": page.total, "rows": _rows(page)})
    return escaped(_for_people(specs()["read_run"].summarize(page).text(), run_id))


def _rows(page: ReadRunResult) -> list[dict[str, Any]]:
    return [dict(zip(page.table.columns, row, strict=True)) for row in page.table.rows]


def _for_people(text: str, run_id: str) -> str:
    for pattern, wording in _WORDINGS:
        text = re.sub(pattern, wording.replace("{run}", run_id), text)
    return text


def _facts(record: RunRecord) -> Iterator[str]:
    partial = ", with a part of its result" if record.partial else ""
    yield f"{record.id}: {record.state}{partial}"
    if record.error is not None:
        yield f"error: {record.error.code}: {record.error.message}"
    opened = record.opened[:19].replace("T", " ")
    times = [
        f"{what} {seconds(taken)}"
        for what, taken in (("waited", record.queue_seconds), ("computed", record.compute_seconds))
        if taken is not None
    ]
    yield ", ".join([f"called: {opened} UTC", *times])
    yield f"tool: {record.tool}"
    for name, value in record.params.items():
        if value is not None and name != "model":
            yield f"  {name}: {elided(quoted(value) if isinstance(value, str) else compact_json(value), _LONGEST)}"
    yield f"model: {record.model}"
    if record.environment is not None:
        yield from _environment(record.environment)


def _environment(made: RunEnvironment) -> Iterator[str]:
    at = f" at {made.revision}" if made.revision else ""
    yield f"  {made.architecture} from {made.source}{at}, {made.dtype}, attention {made.attention}"
    yield f"device: {made.device} ({made.device_name}), {made.threads} threads, {made.platform}"
    yield f"versions: {', '.join(f'{name} {version}' for name, version in made.versions.items())}"
