"""`nnterp-mcp runs | replay | export`: commands on recorded runs."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnterp_mcp.commands.flags import add_folders, add_json, add_run_id, relative_difference, settings_of, whole_number
from nnterp_mcp.commands.output import write_output
from nnterp_mcp.errors import InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]

    from nnterp_mcp.commands.reproduce.comparison import FieldComparison
    from nnterp_mcp.commands.reproduce.replay import Replay
    from nnterp_mcp.runs.records import RunRecord
    from nnterp_mcp.runs.store import RunStore

_FIELDS = 12
"""Fields that a replay lists when nothing differs in them."""


def add_runs(commands: Commands[ArgumentParser]) -> None:
    """Adds the commands to the parser of `nnterp-mcp`."""
    _add_records(commands)
    replay = commands.add_parser("replay", help="run a recorded call again here, and compare every number")
    add_run_id(replay)
    replay.add_argument(
        "--tolerance",
        type=relative_difference,
        default=1e-5,
        help="allowed difference of two numbers, relative to the larger of them or to 0.01 (1e-05)",
    )
    replay.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="let the model run its own code (off)"
    )
    add_folders(replay)
    add_json(replay)
    replay.set_defaults(run=_replay)

    export = commands.add_parser("export", help="write a run as a Python script that prints the same numbers")
    add_run_id(export)
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it (standard output)")
    add_folders(export)
    export.set_defaults(run=_export)


def _add_records(commands: Commands[ArgumentParser]) -> None:
    runs = commands.add_parser("runs", help="list the recorded runs; show, pin, unpin or delete one")
    add_folders(runs)
    add_json(runs)
    runs.add_argument(
        "--limit", type=whole_number(1, 1_000_000), default=20, help="runs to list, the latest first (20)"
    )
    runs.set_defaults(run=_list)
    actions = runs.add_subparsers(metavar="ACTION")
    for name, action, effect in (
        ("show", _show, "print a run: its facts and its answer, or one of its parts"),
        ("pin", _pin, "keep a run when others are deleted to make room"),
        ("unpin", _pin, "let a run go when room is needed"),
        ("delete", _delete, "delete a run"),
    ):
        one = actions.add_parser(name, help=effect)
        add_run_id(one)
        add_folders(one)
        add_json(one)
        one.set_defaults(run=action, action=name)
        if action is _show:
            one.add_argument("--part", help="a table or array of the run, or result or record (its answer)")
            one.add_argument(
                "--offset", type=whole_number(0, 1_000_000_000), default=0, help="rows of the part to skip (0)"
            )
            one.add_argument(
                "--limit",
                dest="rows",
                type=whole_number(1, 500),
                default=20,
                help="rows of the part to print at most (20)",
            )


def _store(options: Namespace) -> RunStore:
    from nnterp_mcp.runs.store import RunStore

    return RunStore(settings_of(options).runs)


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
    from nnterp_mcp.commands.show import show, show_part

    store, as_json = _store(options), "json" in options
    if options.part is not None:
        print(show_part(store, options.run_id, options.part, options.offset, options.rows, as_json))
    elif as_json:
        print(store.read(options.run_id).model_dump_json())
    else:
        print(show(store, options.run_id))


def _pin(options: Namespace) -> None:
    pinned = options.action == "pin"
    _store(options).pin(options.run_id, pinned)
    _confirm(options, {"id": options.run_id, "pinned": pinned}, "is pinned" if pinned else "is no longer pinned")


def _delete(options: Namespace) -> None:
    store = _store(options)
    if store.read(options.run_id).state == "running":
        step = "Cancel it in the client that called it, or end its server."
        raise InvalidRequest(f"{options.run_id} is running.", step)
    if store.is_pinned(options.run_id):
        raise InvalidRequest(f"{options.run_id} is pinned.", f"Run first: nnterp-mcp runs unpin {options.run_id}")
    store.delete(options.run_id)
    _confirm(options, {"id": options.run_id, "deleted": True}, "is deleted")


def _confirm(options: Namespace, facts: dict[str, Any], words: str) -> None:
    print(json.dumps(facts) if "json" in options else f"{options.run_id} {words}.")


def _replay(options: Namespace) -> int:
    """Prints the comparison; the code is 1 if anything differs."""
    from nnterp_mcp.commands.reproduce.replay import replay
    from nnterp_mcp.table import compact_json

    with redirect_stdout(sys.stderr):
        found = replay(options.run_id, settings_of(options), options.tolerance, lambda now: print(now.message))
    print(compact_json(asdict(found) | {"equal": found.equal}) if "json" in options else _compared(found))
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

    script = export(_store(options).read(options.run_id), settings_of(options).data)
    if options.output is None:
        print(script, end="")
    else:
        write_output(options.output, script)
