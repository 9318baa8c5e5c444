"""Lenses on the Hub: a repository, and a file or folder of one lens in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from nnterp_mcp.errors import InvalidRequest, UnknownModel
from nnterp_mcp.model.loading.hub_files import download_files
from nnterp_mcp.model.loading.locations import Report

_SPACES = "spaces/"
"""The prefix of addresses whose repository is a space, as in the Hub's own addresses."""

_KINDS = (".safetensors", ".pt")
_NAMED = 5
"""Files that an error names."""


def download_lens(address: str, revision: str | None, report: Report) -> tuple[Path, str]:
    """Downloads the files of one lens, or finds them in the cache where the Hub is away.

    Args:
        address: A repository's id, and below it the path of a `.safetensors` or `.pt` file, or of a folder with one;
            `spaces/` before the id for a space.
        revision: Branch, tag or commit.
        report: Called with the current step.

    Returns:
        The file, or of a tuned lens as it is published its folder; and the commit.

    Raises:
        Forbidden: The repository is gated.
        InvalidRequest: It has no such lens, or several.
        UnknownModel: There is none, or it cannot be reached.
    """
    parts = address.removeprefix(_SPACES).split("/")
    repository, inner = "/".join(parts[:2]), "/".join(parts[2:])
    found: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        found[:] = choose_lens(names, repository, inner)
        return found

    kind = "space" if address.startswith(_SPACES) else "model"
    folder, commit = download_files(repository, revision, choose, report, kind)
    if not found:  # the Hub is away
        cached = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        try:
            found = choose_lens(cached, repository, inner)
        except InvalidRequest as error:
            raise UnknownModel(
                f"{address!r} is not on this machine and the Hub cannot be reached",
                "Give a file or folder of this machine.",
            ) from error
    file = folder / found[0]
    return file.parent if len(found) > 1 else file, commit


def choose_lens(names: Sequence[str], repository: str, inner: str) -> list[str]:
    """The file of a lens, and behind it the configuration of a tuned one.

    Args:
        names: All files of the repository.
        repository: Its id, for errors.
        inner: The path below it.

    Raises:
        InvalidRequest: There is none, or several.
    """
    every = [name for name in names if name.endswith(_KINDS)]
    below = [name for name in every if not inner or name == inner or name.startswith(f"{inner}/")]
    if len(below) != 1:
        there = below or every
        named = ", ".join(f"{repository}/{name}" for name in there[:_NAMED])
        where = f"{repository}/{inner}" if inner else repository
        raise InvalidRequest(
            f"{where} has {len(below) or 'no'} files of lenses (.safetensors, .pt).",
            f"Name one, such as {named}." if there else "Name another repository.",
        )
    config = str(PurePosixPath(below[0]).with_name("config.json"))
    return [*below, *([config] if below[0].endswith("params.pt") and config in names else [])]
