"""Some files of a repository on the Hub, with the Hub's errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from nnterp_mcp.errors import Forbidden, NnterpError, UnknownModel
from nnterp_mcp.model.loading.locations import Report, reporting_bar
from nnterp_mcp.request.arguments import shown


def download_files(
    repository: str,
    revision: str | None,
    choose: Callable[[Sequence[str]], list[str]],
    report: Report,
    kind: Literal["model", "space"] = "model",
) -> tuple[Path, str]:
    """Downloads chosen files of a repository, or finds them in the cache where the Hub is away.

    Args:
        repository: Its id.
        revision: Branch, tag or commit.
        choose: Given the names of all its files, returns those that are wanted.
        report: Called with the current step.
        kind: The type of the repository.

    Returns:
        The folder, and the commit.

    Raises:
        Forbidden: It is gated.
        UnknownModel: There is none, or it cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    unreachable: Any = (OSError, *HfHubHTTPError.__bases__)
    try:
        report(f"asking the Hub for {repository}")
        ask = HfApi().model_info if kind == "model" else HfApi().space_info
        info = ask(repository, revision=revision)
        wanted = choose([file.rfilename for file in info.siblings or []])
        report(f"downloading {repository}")
        folder = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=wanted, tqdm_class=reporting_bar(report)
        )
        return Path(folder), Path(folder).name
    except GatedRepoError as error:
        raise Forbidden(
            f"{repository} is gated on the Hub", "Accept its licence there and start the server with HF_TOKEN set."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(f"the Hub has no repository {shown(repository)} (or a private one)") from error
    except NnterpError:  # some of ours are errors of the system too
        raise
    except unreachable as error:
        folder = _cached(repository, revision, kind)
        if folder is None:
            raise UnknownModel(
                f"{repository!r} is not on this machine and the Hub cannot be reached ({type(error).__name__})",
                "Give a file or folder of this machine.",
            ) from error
        return folder, folder.name


def _cached(repository: str, revision: str | None, kind: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Without patterns, a snapshot that lacks a file of the repository counts as incomplete and is not found.
        found = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=[], local_files_only=True
        )
        return Path(found)
    except (LocalEntryNotFoundError, OSError):
        return None
