"""The files of models: local folders, GGUF files and the Hub."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnterp_mcp.errors import Forbidden, NnterpError, UnknownModel
from nnterp_mcp.formatting import size
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.model_folder import find_checkpoint, require_safetensors

Report = Callable[[str], None]
"""Called with a line about the current step of the load."""

BUILTIN = "smollm2-135m"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_HUB_IGNORED = ["original/*", "*consolidated*", "onnx/*"]


@dataclass(frozen=True)
class Located:
    """Where a model's files are.

    Attributes:
        folder: The folder that holds them.
        origin: The source of the files, in words.
        gguf: The GGUF file in the folder, when the weights are in one.
        revision: The Hub's commit, None for local files.
    """

    folder: Path
    origin: str
    gguf: str | None = None
    revision: str | None = None


def existing_path(name: str) -> Path | None:
    """The path of an existing file or folder, None for any other name."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # longer than a path can be, or the home of nobody
        return None


def locate_local(path: Path) -> Located:
    """A folder, or a GGUF file."""
    folder, gguf = find_checkpoint(path)
    return Located(folder, str(path), gguf=gguf)


def locate_on_hub(name: str, revision: str | None, code: bool, report: Report, weights: bool = True) -> Located:
    """A model of the Hub; without its weights where only the rest is wanted."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The bases are the errors of the HTTP library that the Hub's client uses; which one depends on its version.
    unreachable: Any = (OSError, *HfHubHTTPError.__bases__)
    patterns: dict[str, Any] = {
        "allow_patterns": [*_HUB_FILES, *(["*.py"] if code else [])],
        "ignore_patterns": [*_HUB_IGNORED, *([] if weights else ["*.safetensors"])],
    }
    try:
        report(f"asking the Hub for {name}")
        info = HfApi().model_info(name, revision=revision)
        if weights:
            require_safetensors(name, [file.rfilename for file in info.siblings or []])
        report(f"downloading {name}")
        # By its name, not by the commit: the cache keeps the name only so, and is asked by it when the Hub is away.
        folder = snapshot_download(name, revision=revision, tqdm_class=reporting_bar(report), **patterns)
        return Located(Path(folder), f"the Hub's {name}", revision=Path(folder).name)
    except GatedRepoError as error:
        raise Forbidden(
            f"{name} is gated on the Hub",
            "Accept its licence there and start the server with HF_TOKEN set.",
            "Accept its licence there and set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModel(f"{name} has no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(
            f"the Hub has no model {name!r} (or a private one)",
            f"Check the spelling, set HF_TOKEN for a private model, or load {BUILTIN!r}, which is built in.",
        ) from error
    except HFValidationError as error:
        raise UnknownModel(
            f"there is no file or folder {shown(name)}, and it is no Hub id either",
            f"Give an existing path, a Hub id, or {BUILTIN!r}, which is built in.",
        ) from error
    except NnterpError:  # some of ours are errors of the system too
        raise
    except unreachable as error:
        try:
            folder = snapshot_download(name, revision=revision, local_files_only=True, **patterns)
        except (LocalEntryNotFoundError, OSError):
            raise UnknownModel(
                f"{name!r} is not on this machine and the Hub cannot be reached ({type(error).__name__})",
                f"Give a local folder or .gguf file, or load {BUILTIN!r}, which is built in.",
            ) from error
        if weights:
            require_safetensors(name, os.listdir(folder))  # noqa: PTH208 - names only
        return Located(Path(folder), f"the Hub's {name} (cached)", revision=Path(folder).name)


def reporting_bar(report: Callable[[str], None]) -> type[Any]:
    """A `tqdm` class for `snapshot_download` whose bars call `report` about once a second."""

    class ReportingBar(tqdm):  # generic in its stubs only
        _told = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"file": io.StringIO(), "mininterval": 0.5, "disable": False}))

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            now = time.monotonic()
            if self.unit == "B" and self.total and now - ReportingBar._told > 1:
                ReportingBar._told = now
                report(f"downloaded {size(self.n)} of {size(self.total)}")
            return shown

    return ReportingBar
