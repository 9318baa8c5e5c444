"""Labels of a loaded dictionary's features: where they are, and those of some features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.labels import fetch_labels, find_label_file, read_labels
from nnterp_mcp.experiments.features.published import Published
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.dictionaries import NEURONPEDIA
from nnterp_mcp.settings import Settings

_DICTIONARY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
"""A model and a dictionary as Neuronpedia names them."""

_MOST_ASKED = 16
"""Features that Neuronpedia is asked for in a call."""


@dataclass(frozen=True)
class Labels:
    """Labels of some features.

    Attributes:
        source: Who says so, for answers.
        of: The labels of those that have one.
        fault: Why others may lack one.
    """

    source: str
    of: Mapping[int, str] = field(default_factory=dict[int, str])
    fault: str | None = None


def find_labels(asked: str | None, found: Published, settings: Settings) -> str | None:
    """The place of a dictionary's labels; None where nobody says.

    Args:
        asked: The file, or the dictionary at Neuronpedia, that the caller names.
        found: The dictionary, in whose folder labels may lie, and whose files may name it at Neuronpedia.
        settings: The folders from which files are read.

    Returns:
        A path, or a dictionary at Neuronpedia.

    Raises:
        Forbidden: The file lies outside of the allowed folders.
        InvalidRequest: The file that the caller names cannot be read as labels.
    """
    if asked is not None:
        named = asked.replace("{layer}", str(found.layer))
        if named.startswith(NEURONPEDIA):
            return _at_neuronpedia(named.removeprefix(NEURONPEDIA))
        path = allowed_file(named, settings.folders)
        read_labels(path)
        return str(path)
    here = None if found.folder is None else find_label_file(found.folder)
    return _at_neuronpedia(found.neuronpedia) if here is None else str(here)


def labels_of(source: str | None, features: Sequence[int], settings: Settings) -> Labels | None:
    """The labels of features; None where there is no source of labels.

    Args:
        source: As `find_labels` returns it.
        features: The features.
        settings: Where Neuronpedia may be asked, if it may.
    """
    if source is None:
        return None
    if not source.startswith(NEURONPEDIA):
        path = Path(source)
        try:
            known = read_labels(path)
        except InvalidRequest as error:
            return Labels(path.name, fault=error.message)
        return Labels(path.name, {feature: known[feature] for feature in features if feature in known})
    dictionary = source.removeprefix(NEURONPEDIA)
    if settings.neuronpedia is None:
        return Labels(
            f"Neuronpedia, {dictionary}", fault="Whoever starts the server lets it ask there with --neuronpedia."
        )
    asked = features[:_MOST_ASKED]
    found, fault = fetch_labels(settings.neuronpedia, settings.neuronpedia_key(), dictionary, asked)
    return Labels(f"Neuronpedia, {dictionary}", found, fault and f"Neuronpedia did not answer for some ({fault}).")


def _at_neuronpedia(dictionary: object) -> str | None:
    """The source that a dictionary's name at Neuronpedia stands for; None for what is no such name."""
    known = isinstance(dictionary, str) and _DICTIONARY.fullmatch(dictionary) is not None
    return f"{NEURONPEDIA}{dictionary}" if known else None
