"""Where dictionaries come from: a folder of this machine, or a repository on the Hub with a path below it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.labels import LABEL_FILE
from nnterp_mcp.experiments.features.layouts import find_dictionaries
from nnterp_mcp.experiments.features.published import Published
from nnterp_mcp.model.loading.hub_files import download_files
from nnterp_mcp.model.loading.locations import Report

_KINDS = (".safetensors", ".npz", ".pt", ".json", ".yaml")
_TENSORS = (".safetensors", ".npz", ".pt")
_MOST = 64
"""Files of tensors that are downloaded together, at most."""

_NUMBER = re.compile(r"(?<![a-zA-Z])(?:layers?|h|W_enc|W_dec|L)[._]?(\d+)")
"""A layer in the name of a file or folder."""


def find_source(
    source: str, revision: str | None, local: Path | None, layers: Sequence[int] | None, report: Report
) -> tuple[list[Published], str | None]:
    """The dictionaries behind a source, downloaded if need be.

    Args:
        source: As the caller named it.
        revision: Branch, tag or commit on the Hub.
        local: The folder, where it is one of this machine.
        layers: The layers that are wanted; None for all.
        report: Called with the current step.

    Returns:
        The dictionaries, by layer, and the Hub's commit.

    Raises:
        Forbidden: The repository is gated.
        InvalidRequest: There are none, or too many to download.
        UnknownModel: There is no such repository, or it cannot be reached.
    """
    if local is not None:
        return find_dictionaries(local, str(local)), None
    repository, inner = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    if inner.endswith(_TENSORS):  # one layer's file among those of others
        layer, inner = _layer_of(inner), inner.rpartition("/")[0]
        layers = layers if layer is None else [layer]

    def choose(names: Sequence[str]) -> list[str]:
        return choose_files(names, source, inner, layers)

    folder, commit = download_files(repository, revision, choose, report)
    if not (folder / inner).is_dir():
        raise InvalidRequest(f"{repository} has no folder {inner}.")
    return find_dictionaries(folder / inner, source), commit


def choose_files(names: Sequence[str], source: str, inner: str, layers: Sequence[int] | None) -> list[str]:
    """The files of a repository that belong to the wanted dictionaries.

    Args:
        names: All its files.
        source: The address, for errors.
        inner: The path below the repository.
        layers: The layers that are wanted; None for all.

    Raises:
        InvalidRequest: There are none, or more than are downloaded together.
    """
    below = [
        name
        for name in names
        if (name.endswith(_KINDS) or LABEL_FILE.fullmatch(name.rpartition("/")[2]))
        and (not inner or name.startswith(f"{inner}/"))
    ]
    wanted = [name for name in below if layers is None or _layer_of(name) in (None, *layers)]
    tensors = [name for name in wanted if name.endswith(_TENSORS)]
    if not tensors:
        raise InvalidRequest(f"{source} has no files of tensors{' of these layers' if below else ''}.")
    if len(tensors) > _MOST:
        raise InvalidRequest(
            f"{source} has {len(tensors)} files of tensors, and {_MOST} are downloaded together.",
            f"Name a folder below it, such as {source}/{Path(tensors[0]).parent.as_posix()}, or layers.",
        )
    return wanted


def _layer_of(name: str) -> int | None:
    found = _NUMBER.findall(name)
    return int(found[-1]) if found else None
