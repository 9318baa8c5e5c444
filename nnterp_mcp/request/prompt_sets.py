"""Prompt sets: prompts with targets of their own, as a call writes them or as JSONL and CSV files hold them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import from_json

from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import plural
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_STRING,
    MOST_GROUPS,
    MOST_PROMPTS,
    Given,
    require_at_most,
    shown,
    without_nulls,
)
from nnterp_mcp.request.named_sets import UNGROUPED, prompts_of
from nnterp_mcp.request.prompts import Prompt, holds_prompts, read_text, require_short_prompt
from nnterp_mcp.request.remarks import remark
from nnterp_mcp.request.targets import Targets, require_few_targets

_LONGEST_LINE = 1 << 22
"""Characters of a line, which is read whole."""

_NAMELESS = re.compile(r"\s*|Unnamed: \d+(_level_\d+)?(\.\d+)?")
"""The header of a column that pandas wrote for the index of its rows, and what it calls it after reading it again."""


class PromptItem(Given):
    """A prompt with targets of its own."""

    prompt: Prompt
    targets: Targets = Field(default_factory=dict)


class PromptFile(Given):
    """A JSONL or CSV file of prompts in a folder that the server allows."""

    path: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]


PromptSet = PromptFile | tuple[PromptItem, ...]


def as_prompt_set(value: Any) -> PromptSet:
    """Parses a prompt set: strings, objects with their own targets, or a file.

    Raises:
        ValueError: It is none of these, or empty.
    """
    value = without_nulls(value)
    if isinstance(value, dict) and "path" in value:
        return PromptFile.model_validate(value)
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("prompts is empty: give at least one prompt")
    return tuple(_as_item(index, item) for index, item in enumerate(items))


def _as_given(value: Any) -> PromptSet:
    value = read_text(prompts_of(value), _holds_prompt_set)
    if isinstance(value, list | tuple):
        require_at_most(MOST_PROMPTS, value, "prompts", "prompts")
        require_few_targets(item.get("targets") for item in value if isinstance(item, dict))
    return as_prompt_set(value)


def _holds_prompt_set(found: Any) -> bool:
    if isinstance(found, dict):
        return "path" in found or "prompt" in found or holds_prompts(found)
    return holds_prompts([item["prompt"] if isinstance(item, dict) and "prompt" in item else item for item in found])


def _as_item(index: int, value: Any) -> PromptItem:
    given = value if isinstance(value, PromptItem | dict) else {"prompt": value}
    require_short_prompt(given.get("prompt") if isinstance(given, dict) else given.prompt, index)
    try:
        item = PromptItem.model_validate(given)
    except ValidationError as error:
        reason = error.errors()[0]
        raise ValueError(
            f"prompt {index} must be text, chat messages or {{prompt, targets}}, not {shown(value)} "
            f"({reason['msg'].removeprefix('Value error, ')})"
        ) from None
    return item


SetContents = PromptFile | dict[str, tuple[PromptItem, ...]]
"""Contents of a named set: a file, or prompts with targets by group."""


def _as_contents(value: Any) -> SetContents:
    value = read_text(value, lambda found: isinstance(found, dict) or _holds_prompt_set(found))
    if isinstance(value, PromptFile):
        return value
    if not isinstance(value, dict) or {"prompt", "path", "role"} & value.keys():
        found = _as_given(value)
        return _alike(found if isinstance(found, PromptFile) else {UNGROUPED: found})
    if not value or not all(value):
        raise ValueError(f"prompts must map names of groups to prompts, not {shown(value)}")
    require_at_most(MOST_GROUPS, value, "prompts", "groups")
    groups: dict[str, tuple[PromptItem, ...]] = {}
    for name, prompts in value.items():
        require_at_most(LONGEST_NAME, name, "a group's name", "characters")
        found = _as_given(prompts)
        if isinstance(found, PromptFile):
            raise ValueError(f"group {shown(name)} is a file: give a file in place of all groups")
        groups[name] = found
    return _alike(groups)


def _alike(contents: SetContents) -> SetContents:
    """The contents of a set, whose prompts all have the same categories of targets."""
    if not isinstance(contents, PromptFile):
        require_alike([item for of_group in contents.values() for item in of_group])
    return contents


def require_alike(items: Sequence[PromptItem]) -> None:
    """Refuses prompts with other target categories than the first.

    Raises:
        ValueError: A prompt has others.
    """
    for index, item in enumerate(items):
        if set(item.targets) != set(items[0].targets):
            raise ValueError(
                f"prompt {index} has the target categories {sorted(item.targets)}: all must have those of prompt 0, "
                f"{list(items[0].targets)}"
            )


ContentsField = Annotated[
    SetContents,
    BeforeValidator(_as_contents),
    schemas.as_schema(
        schemas.GROUPS,
        'Prompts of the set: a list of texts, chats or {"prompt", "targets"}; such lists by group, {"positive": [...], '
        '"negative": [...]}; or {"path": FILE}.',
    ),
]
PromptSetField = Annotated[
    PromptSet,
    BeforeValidator(_as_given),
    schemas.as_schema(
        schemas.PROMPTS,
        'Texts or chats, objects {"prompt", "targets"}, {"set": NAME}, or {"path": FILE}: JSONL of these, or CSV '
        "with a prompt column and a column per category.",
    ),
]


def read_prompt_file(path: Path, most: int | None = None) -> tuple[PromptItem, ...]:
    """The prompts of a file, in its order; a byte order mark before the first is skipped.

    A line of a JSONL file is a string, chat messages or `{"prompt", "targets"}`. A CSV file has a column `prompt`;
    every other column with a name is a target category.

    Args:
        path: The file.
        most: The most prompts that it may hold; no more of it is read. Any number by default.

    Raises:
        InvalidRequest: The file is empty, or not what its ending says.
        LimitExceeded: It holds more prompts.
    """
    readers: dict[str, Callable[[Iterator[str]], Iterator[Any]]] = {".jsonl": _read_jsonl, ".csv": _read_csv}
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
