"""Some files of a repository on the Hub, with the Hub's errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import Forbidden, NnterpError, UnknownModel
from nnterp_mcp.model.loading.locations import Report, reporting_bar
from nnterp_mcp.request.arguments import shown


def download_files(
    repository: str, revision: str | None, choose: Callable[[Sequence[str]], list[str]], report: Report
) -> tuple[Path, str]:
    """Downloads chosen files of a repository, or finds them in the cache where the Hub is away.

    Args:
        repository: Its id.
        revision: Branch, tag or commit.
        choose: Given the names of all its files, returns those that are wanted.
        report: Called with the current step.

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
        info = HfApi().model_info(repository, revision=revision)
        wanted = choose([file.rfilename for file in info.siblings or []])
        report(f"downloading {repository}")
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=wanted, tqdm_class=reporting_bar(report)
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
        folder = _cached(repository, revision)
        if folder is None:
            raise UnknownModel(
                f"{repository!r} is not on this machine and the Hub cannot be reached ({type(error).__name__})",
                "Give a folder of this machine.",
            ) from error
        return folder, folder.name


def _cached(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None
