"""Flags that several commands have, and the types of numbers on the command line."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from nnterp_mcp.settings import Settings

_RUNS = 50
"""Latest runs that a shell completes."""

_MOST_SECONDS = 1_000_000
"""Seconds that a flag may ask for."""


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The type of a flag that takes a whole number within a range."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise ArgumentTypeError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return number

    return parse


def positive_seconds(text: str) -> float:
    """The type of a flag that takes a duration.

    Raises:
        ArgumentTypeError: It is no positive number.
    """
    return _number(
        text, f"a number of seconds above 0, up to {_MOST_SECONDS}", lambda value: 0 < value <= _MOST_SECONDS
    )


def relative_difference(text: str) -> float:
    """The type of a flag that takes a relative difference.

    Raises:
        ArgumentTypeError: It is no number from 0 to 1.
    """
    return _number(text, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def _number(text: str, allowed: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise ArgumentTypeError(f"{text[:40]!r} is not {allowed}")
    return value


def add_run_id(parser: ArgumentParser) -> None:
    """Adds the argument that names a run, which a shell completes."""
    argument: Any = parser.add_argument("run_id", metavar="RUN", help="the run's id, as nnterp-mcp runs lists it")
    argument.completer = latest_runs


def latest_runs(prefix: str, parsed_args: Namespace, **_: Any) -> list[str]:
    """The ids of the latest runs that begin so; `argcomplete` calls it by these names."""
    from nnterp_mcp.runs.store import RunStore

    records = RunStore(settings_of(parsed_args).runs).latest(_RUNS)
    return [record.id for record in records if record.id.startswith(prefix)]


def add_folders(parser: ArgumentParser) -> None:
    """Adds the flags that name the folders of runs and vectors."""
    # An action's parser would replace with its own default what stands before the action.
    parser.add_argument(
        "--runs", type=Path, default=SUPPRESS, metavar="FOLDER", help="folder of the runs ('runs' in that of --data)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=SUPPRESS,
        metavar="FOLDER",
        help="folder of vectors, and of runs unless --runs is given (the platform's data folder)",
    )


def add_json(parser: ArgumentParser) -> None:
    """Adds the flag that asks for JSON."""
    parser.add_argument("--json", action="store_true", default=SUPPRESS, help="print one line of JSON")


def settings_of(options: Namespace) -> Settings:
    """The settings of the environment with the flags of a command.

    Raises:
        InvalidRequest: A flag or variable has a value that is not allowed.
    """
    from pydantic import ValidationError

    from nnterp_mcp.errors import InvalidRequest
    from nnterp_mcp.settings import Settings

    flags = {name: getattr(options, name, None) for name in Settings.model_fields}
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "\n".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise InvalidRequest(
            wrong, "Change the flag, or the variable of the environment: NNTERP_MCP_ and the name in capitals."
        ) from None
