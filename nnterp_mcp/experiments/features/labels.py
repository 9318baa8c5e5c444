"""Labels of features, which others wrote: in a file next to a dictionary, or at Neuronpedia.

A label is text from outside: it is cut, kept on one line, and shown as third-party text alone.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.web import download
from nnterp_mcp.formatting import elided

LABEL_FILE = re.compile(r"(labels|explanations)\.jsonl?(\.gz)?|batch-\d+\.jsonl(\.gz)?")
"""Files of labels by name; batches lie in a folder `explanations`, as Neuronpedia exports them."""

_NAMES = ("labels.json", "labels.jsonl", "labels.jsonl.gz", "explanations.json", "explanations.jsonl")
_LONGEST = 200
"""Characters of a label."""

_MOST_BYTES = 256_000_000
"""Bytes of a file of labels, uncompressed."""

_MOST_ANSWER = 8_000_000
"""Bytes of Neuronpedia's answer on one feature, which holds activations too."""

_AT_ONCE = 8


def find_label_file(folder: Path) -> Path | None:
    """The file of labels in a dictionary's folder, or the folder of Neuronpedia's batches; None where there is none."""
    files = [folder / name for name in _NAMES if (folder / name).is_file()]
    batches = folder / "explanations"
    return files[0] if files else batches if batches.is_dir() and any(batches.glob("batch-*.jsonl*")) else None


def read_labels(path: Path) -> Mapping[int, str]:
    """The labels in a file, or in the batches of a folder.

    Args:
        path: A JSON object of labels by index, a JSON list, or JSONL, of objects with `index` and `description` (or
            `explanations`) as Neuronpedia exports them; or a folder of such batches.

    Raises:
        InvalidRequest: It cannot be read as labels.
    """
    files = sorted(path.glob("batch-*.jsonl*")) if path.is_dir() else [path]
    try:
        return _read(tuple((file, file.stat().st_mtime_ns) for file in files))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{path.name} cannot be read as labels ({type(error).__name__}).",
            'Labels are a JSON object, {"5": "a label"}, or lines such as {"index": 5, "description": "a label"}.',
        ) from error


@lru_cache(maxsize=8)
def _read(files: tuple[tuple[Path, int], ...]) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for file, _ in files:
        for index, label in _labels(file):
            found.setdefault(index, label)
    if not found:
        raise ValueError("no labels")
    return found


def _labels(file: Path) -> Iterator[tuple[int, str]]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError("too large")
    lines = ".jsonl" in file.name
    given: Any = [json.loads(line) for line in content.splitlines() if line.strip()] if lines else json.loads(content)
    if isinstance(given, dict) and "index" not in given:
        yield from _of_items(cast("dict[str, Any]", given).items())
    else:
        items: list[Any] = given if isinstance(given, list) else [given]
        yield from _of_items((one.get("index"), one) for one in items if isinstance(one, dict))


def _of_items(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[int, str]]:
    for index, given in items:
        label = _label_of(given)
        if label and isinstance(index, int | str) and re.fullmatch(r"\d{1,9}", str(index)):
            yield int(index), label


def _label_of(given: Any) -> str | None:
    """The text of a label, or of the first explanation of a feature."""
    if isinstance(given, dict):
        feature = cast("dict[str, Any]", given)
        explanations: Any = feature.get("explanations")
        several = cast("list[Any]", explanations) if isinstance(explanations, list) else []
        first = next((label for one in several if (label := _label_of(one))), None)
        return _label_of(feature.get("description")) or first
    return elided(" ".join(given.split()), _LONGEST) if isinstance(given, str) else None


def fetch_labels(host: str, key: str, dictionary: str, features: Sequence[int]) -> tuple[dict[int, str], str | None]:
    """Asks Neuronpedia for the labels of features, each by a request of its own.

    Args:
        host: Its address.
        key: The API key; empty for none.
        dictionary: The model and the dictionary as it names them, `gpt2-small/8-res-jb`.
        features: The features.

    Returns:
        The labels of those that have one, and what went wrong with any of the others.
    """
    faults: list[str] = []

    def ask(feature: int) -> tuple[int, str | None]:
        headers = {"x-api-key": key} if key else {}
        try:
            content = download(f"{host}/api/feature/{dictionary}/{feature}", headers, _MOST_ANSWER)
            return feature, _label_of(json.loads(content))
        except HTTPError as error:
            faults.append(f"HTTP {error.code}")
        except (OSError, ValueError, RecursionError) as error:
            faults.append(type(error).__name__)
        return feature, None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(pool.map(ask, features))
    return {feature: label for feature, label in found.items() if label}, faults[0] if faults else None
