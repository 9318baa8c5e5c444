"""Prompt sets on disk: JSONL and CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from pydantic_core import from_json

from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import plural
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.remarks import remark
from nnterp_mcp.toolset.run_prompts.params import PromptItem, as_prompt_set

_LONGEST_LINE = 1 << 22
"""Characters of a line, which is read whole."""

_NAMELESS = re.compile(r"\s*|Unnamed: \d+(_level_\d+)?(\.\d+)?")
"""The header of a column that pandas wrote for the index of its rows, and what it calls it after reading it again."""


def read_prompt_file(path: Path, most: int | None = None) -> tuple[PromptItem, ...]:
    """The prompts of a file, in its order; a byte order mark before the first is skipped.

    A line of a JSONL file is a string, chat messages or `{"prompt", "targets"}`. A CSV file has a column `prompt`;
    every other column with a name is a target category.

    Args:
        path: The file.
        most: How many prompts it may hold; no more of it is read. Any number by default.

    Raises:
        InvalidRequest: The file is empty, or not what its ending says.
        LimitExceeded: It holds more prompts.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise InvalidRequest(f"{path.name} is no prompt file: give a .jsonl or .csv file.")
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as source:
            items = list(islice(readers[path.suffix](_lines(source)), None if most is None else most + 1))
        if most is not None and len(items) > most:
            raise LimitExceeded(f"{path.name} holds more than the {most} prompts that this server allows a call.")
        prompts = as_prompt_set(items)
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error.strerror}.") from error
    except UnicodeError as error:
        raise InvalidRequest(f"{path.name} is not encoded in UTF-8: {error}.") from error
    except LimitExceeded:
        raise
    except ValueError as error:
        raise InvalidRequest(f"{path.name}: {error}.") from error
    assert isinstance(prompts, tuple)
    return prompts


def _lines(source: TextIO) -> Iterator[str]:
    """The lines of a file, of which one in a file that is something else may have no end."""
    number = 0
    while line := source.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"line {number} is longer than {_LONGEST_LINE} characters")
        yield line


def _read_jsonl(lines: Iterator[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield from_json(line)
            except ValueError as error:
                reason = str(error).replace("line 1 ", "")
                raise ValueError(f"line {number} is no JSON ({reason})") from None


def _read_csv(lines: Iterator[str]) -> Iterator[Any]:
    reader = csv.reader(lines)
    try:
        header = next(reader, [])
        _check_header(header)
        for row in reader:
            if len(row) > len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells, and the header {len(header)}")
            if row:
                cells = dict(zip(header, [*row, *[""] * (len(header) - len(row))], strict=True))
                targets = {name: text for name, text in cells.items() if not _is_no_target(name)}
                yield {"prompt": cells["prompt"], "targets": targets}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is no CSV ({error}); JSONL takes longer texts") from None


def _check_header(header: list[str]) -> None:
    if "prompt" not in header:
        raise ValueError(f"it has no column 'prompt', but {', '.join(map(shown, header[:20])) or 'none'}")
    named = [name for name in header if not _NAMELESS.fullmatch(name)]
    if len(set(named)) < len(named):
        raise ValueError("two of its columns have the same name")
    if left_out := [name for name in header if _NAMELESS.fullmatch(name)]:
        columns = f"{plural(len(left_out), 'column')} of the file ({', '.join(map(shown, left_out[:3]))})"
        remark(f"{columns} without a name: taken for an index, not for targets.")


def _is_no_target(name: str) -> bool:
    return name == "prompt" or _NAMELESS.fullmatch(name) is not None
