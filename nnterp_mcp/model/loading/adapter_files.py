"""The files of an adapter: a folder, or a repository on the Hub, of which two files are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnterp_mcp.model.loading.hub_files import download_files
from nnterp_mcp.model.loading.locations import Located, Report
from nnterp_mcp.request.adapter_folder import CONFIGURATION, WEIGHTS, require_files, split_hub


def locate_adapter(source: str, report: Report) -> Located:
    """Finds an adapter's files, downloading them if need be.

    Args:
        source: A folder, or the id of a repository on the Hub, behind which `@` and a branch, tag or commit may follow.
        report: Called with the current step.

    Raises:
        UnknownModel: There is no such repository, it holds no adapter, or it cannot be reached.
        Forbidden: It is gated, or its weights are there as pickle only.
    """
    hub = split_hub(source)
    if hub is None:
        return Located(Path(source), source)
    repository, revision = hub

    def choose(names: Sequence[str]) -> list[str]:
        require_files(repository, names)
        return [CONFIGURATION, WEIGHTS]

    folder, commit = download_files(repository, revision, choose, report)
    return Located(folder, f"the Hub's {repository}", revision=commit)
