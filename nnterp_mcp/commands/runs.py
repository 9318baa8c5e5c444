"""`nnterp-mcp runs | replay | export`: commands on recorded runs."""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnterp_mcp.errors import InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]

    from nnterp_mcp.commands.reproduce.comparison import FieldComparison
    from nnterp_mcp.commands.reproduce.replay import Replay
    from nnterp_mcp.runs.records import RunRecord
    from nnterp_mcp.runs.store import RunStore
    from nnterp_mcp.settings import Settings

_FIELDS = 12
"""Fields that a replay lists when nothing differs in them."""


def add_runs(commands: Commands[ArgumentParser]) -> None:
    """Adds the commands to the parser of `nnterp-mcp`."""
    runs = commands.add_parser("runs", help="list the recorded runs; show, pin, unpin or delete one")
    _add_listing(runs)
    runs.add_argument("--limit", type=int, default=20, help="runs to list, the latest first (20)")
    runs.set_defaults(run=_list)
    actions = runs.add_subparsers(metavar="ACTION")
    for name, action, effect in (
        ("show", _show, "print a run's record and its answer"),
        ("pin", _pin, "keep a run when others are deleted to make room"),
        ("unpin", _pin, "let a run go when room is needed"),
        ("delete", _delete, "delete a run"),
    ):
        one = actions.add_parser(name, help=effect)
        one.add_argument("run_id", metavar="RUN", help="the run's id")
        _add_listing(one)
        one.set_defaults(run=action, action=name)

    replay = commands.add_parser("replay", help="run a recorded call again here, and compare every number")
    replay.add_argument("run_id", metavar="RUN", help="the run's id")
    replay.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="how far two numbers may lie apart beside the larger of them, or beside 0.01 (1e-5)",
    )
    replay.add_argument("--trust-remote-code", action="store_true", default=None, help="let the model run its own code")
    _add_folders(replay)
    replay.set_defaults(run=_replay)

    export = commands.add_parser("export", help="write a run as a Python script that prints the same numbers")
    export.add_argument("run_id", metavar="RUN", help="the run's id")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it (standard output)")
    _add_folders(export)
    export.set_defaults(run=_export)


def _add_listing(parser: ArgumentParser) -> None:
    _add_folders(parser)
    parser.add_argument("--json", action="store_true", default=SUPPRESS, help="print JSON")


def _add_folders(parser: ArgumentParser) -> None:
    # An action's parser would replace with its own default what stands before the action.
    parser.add_argument("--runs", type=Path, default=SUPPRESS, help="folder of the runs")
    parser.add_argument(
        "--data", type=Path, default=SUPPRESS, help="folder of vectors, and of runs unless --runs is given"
    )


def _settings(options: Namespace) -> Settings:
    from nnterp_mcp.settings import Settings

    given = {name: getattr(options, name, None) for name in ("runs", "data", "trust_remote_code")}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _store(options: Namespace) -> RunStore:
    from nnterp_mcp.runs.store import RunStore

    return RunStore(_settings(options).runs)


def _list(options: Namespace) -> None:
    from nnterp_mcp.formatting import seconds, size
    from nnterp_mcp.table import Table

    store = _store(options)
    lines = [_line(store, record) for record in store.latest(options.limit)]
    if "json" in options:
        print(json.dumps(lines))
    elif not lines:
        print(f"no runs in {store.folder}")
    else:
        rows: list[list[Any]] = [
            [
                *(line[name] for name in ("id", "tool", "model", "state")),
                f"{seconds(line['age'])} ago",
                size(line["bytes"]),
                "pinned" if line["pinned"] else None,
            ]
            for line in lines
        ]
        print(Table(columns=["run", "tool", "model", "state", "age", "size", "pinned"], rows=rows).text())


def _line(store: RunStore, record: RunRecord) -> dict[str, Any]:
    age = (datetime.now(UTC) - datetime.fromisoformat(record.opened)).total_seconds()
    return {
        "id": record.id,
        "tool": record.tool,
        "model": record.model,
        "state": f"{record.state}, partial" if record.partial else record.state,
        "age": max(0.0, age),
        "bytes": store.size(record.id),
        "pinned": store.is_pinned(record.id),
    }


def _show(options: Namespace) -> None:
    from nnterp_mcp.formatting import escaped
    from nnterp_mcp.pool.reading import read_answer

    store = _store(options)
    record = store.read(options.run_id)
    if "json" in options:
        print(escaped(record.model_dump_json(indent=2)))
        return
    print(escaped(record.model_dump_json(indent=2, exclude={"owner"}, exclude_none=True)))
    if record.result_sha256 is not None:
        print(escaped(f"\n{read_answer(store, record).text()}"))


def _pin(options: Namespace) -> None:
    _store(options).pin(options.run_id, options.action == "pin")


def _delete(options: Namespace) -> None:
    store = _store(options)
    if store.read(options.run_id).state == "running":
        raise InvalidRequest(f"{options.run_id} is running.", "End it with cancel_run first.")
    if store.is_pinned(options.run_id):
        raise InvalidRequest(f"{options.run_id} is pinned.", f"Run first: nnterp-mcp runs unpin {options.run_id}")
    store.delete(options.run_id)


def _replay(options: Namespace) -> int:
    """Prints the comparison; the code is 1 if anything differs."""
    from nnterp_mcp.commands.reproduce.replay import replay

    if not options.tolerance >= 0:
        raise InvalidRequest(f"--tolerance is a number from 0 on, not {options.tolerance}.")
    found = replay(
        options.run_id,
        _settings(options),
        options.tolerance,
        lambda progress: print(progress.message, file=sys.stderr),
    )
    print(_compared(found))
    return int(not found.equal)


def _compared(found: Replay) -> str:
    from nnterp_mcp.formatting import number, plural
    from nnterp_mcp.table import Table

    numbers, texts = sum(field.numbers for field in found.fields), sum(field.texts for field in found.fields)
    differing = sum(field.differing for field in found.fields)
    verdict = "equal" if found.equal else f"{plural(differing, 'value')} differ"
    largest = max((field.largest for field in found.fields), default=0.0)
    lines = [
        f"{found.run_id}: {verdict} ({plural(numbers, 'number')}, {plural(texts, 'text')}; tolerance "
        f"{found.tolerance:g}; largest absolute difference {number(largest)}).",
        *(f"The vector {name!r} was made anew since: its numbers may be others." for name in found.replaced),
    ]
    shown, hidden = _chosen(found.fields)
    rows: list[list[Any]] = [
        [field.field, field.numbers, field.texts, field.largest, field.relative, field.differing] for field in shown
    ]
    columns = ["field", "numbers", "texts", "largest difference", "relative", "beyond tolerance"]
    lines += [Table(columns=columns, rows=rows).text()] if rows else []
    lines += [f"{plural(hidden, 'more field')}: no difference."] if hidden else []
    lines += [f"differs: {field.example}" for field in found.fields if field.example]
    lines += [f"environment: {change}" for change in found.environment] or ["environment: the same"]
    return "\n".join(lines)


def _chosen(fields: list[FieldComparison]) -> tuple[list[FieldComparison], int]:
    """All fields with differences, a limited number of the others, and how many are left out."""
    other = [field for field in fields if not field.differing and not field.largest and field.numbers]
    kept = {field.field for field in other[:_FIELDS]}
    shown = [field for field in fields if field.differing or field.largest or field.field in kept]
    return shown, len(fields) - len(shown)


def _export(options: Namespace) -> None:
    from nnterp_mcp.commands.reproduce.export import export
    from nnterp_mcp.runs.vectors import VectorStore

    script = export(_store(options).read(options.run_id), VectorStore(_settings(options).data / "vectors"))
    if options.output is None:
        print(script, end="")
        return
    try:
        options.output.write_text(script, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{options.output} cannot be written: {error.strerror}.") from None
