"""Prompt sets on disk: JSONL and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.toolset.run_prompts.contract import PromptItem, as_prompt_set


def read_prompt_file(path: Path) -> tuple[PromptItem, ...]:
    """The prompts of a file, in its order.

    A line of a JSONL file is a string, chat messages or `{"prompt", "targets"}`. A CSV file has a column `prompt`;
    every other column is a target category.

    Raises:
        InvalidRequest: The file is empty, or not what its ending says.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise InvalidRequest(f"{path.name} is no prompt file: give a .jsonl or .csv file.")
    try:
        prompts = as_prompt_set(readers[path.suffix](path))
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidRequest(f"{path.name}: {error}.") from error
    assert isinstance(prompts, tuple)
    return prompts


def _read_jsonl(path: Path) -> list[Any]:
    items: list[Any] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                items.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON ({error.msg})") from None
    return items


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="") as source:
        reader = csv.DictReader(source, restval="")
        if "prompt" not in (reader.fieldnames or ()):
            raise ValueError(f"it has no column 'prompt', but {', '.join(reader.fieldnames or ()) or 'none'}")
        return [
            {"prompt": row["prompt"], "targets": {name: text for name, text in row.items() if name != "prompt"}}
            for row in reader
        ]
