"""Fitted lenses: saved by name for each model, or read from a file or from the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.translated_lens.hub_lenses import download_lens
from nnterp_mcp.experiments.translated_lens.lens_files import read_lens_file, save_lens
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.experiments.translated_lens.tuned import TunedSums, read_sums, save_sums
from nnterp_mcp.request.access import admit_lens
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.lenses import UNFITTED, LensCard
from nnterp_mcp.request.vectors import is_name

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_SUFFIX, _SUMS = ".safetensors", ".sums"

MOST_SUMS = 2**30
"""Bytes of sums that are saved: they grow with the square of the model's width."""


def _tell_nobody(step: str) -> None:
    pass


def find_lens(
    bench: Bench, choice: str, tell: Callable[[str], None] = _tell_nobody
) -> tuple[LensTranslation, LensCard] | None:
    """The lens that a caller names; None for one that translates nothing.

    Args:
        bench: The model.
        choice: `logit`, `inverse`, the name of a fitted lens, a file in an allowed folder, or a Hub id with a path
            below it, behind which `@` and a branch, tag or commit may follow. Of a tuned lens as it is published, its
            `params.pt`.
        tell: Called with the current step of a download.

    Raises:
        Forbidden: The file lies outside of the allowed folders, the server does not allow the repository or the Hub
            the caller, or it is a pickle that could run code.
        InvalidRequest: There is no such lens, or its file is damaged.
        UnknownModel: There is no such repository, or it cannot be reached.
    """
    if choice in UNFITTED:
        return None
    path, address, revision = _locate(bench, choice, tell)
    lens = read_lens_file(path)
    about = lens.provenance
    own = path.parent == _folder(bench)
    name = address or (path.stem if own else path.name)
    return lens, LensCard(name=name, method=lens.method, prompts=about.prompts, corpus=about.corpus, revision=revision)


def read_saved_lens(bench: Bench, name: str) -> LensTranslation | None:
    """The lens of that name of the loaded model; None if there is none.

    Raises:
        InvalidRequest: Its file is damaged.
    """
    path = _saved(bench, name)
    return read_lens_file(path) if path.exists() else None


def save_named_lens(bench: Bench, name: str, lens: LensTranslation) -> None:
    """Saves a lens of the loaded model under a name, whole or not at all."""
    path = _saved(bench, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_lens(lens, unfinished)
    unfinished.replace(path)


def read_saved_sums(bench: Bench, name: str) -> TunedSums | None:
    """The sums behind a tuned lens that was fitted on the loaded model; None if there are none.

    Raises:
        InvalidRequest: Their file is damaged.
    """
    path = _saved(bench, name).with_suffix(_SUMS)
    return read_sums(path) if is_name(name) and path.exists() else None


def save_named_sums(bench: Bench, name: str, sums: TunedSums | None) -> None:
    """Saves the sums behind a tuned lens, unless they are too large; removes those of an earlier one of its name."""
    path = _saved(bench, name).with_suffix(_SUMS)
    path.parent.mkdir(parents=True, exist_ok=True)
    if sums is None or len(sums) > MOST_SUMS:
        path.unlink(missing_ok=True)
        return
    unfinished = path.with_suffix(".part")
    save_sums(sums, unfinished)
    unfinished.replace(path)


def _folder(bench: Bench) -> Path:
    return bench.settings.data / "lenses" / bench.identity.folder


def _saved(bench: Bench, name: str) -> Path:
    return _folder(bench) / f"{name}{_SUFFIX}"


def _locate(bench: Bench, choice: str, tell: Callable[[str], None]) -> tuple[Path, str | None, str | None]:
    """The file of a lens, or its folder; of one on the Hub also the address and the commit."""
    if is_name(choice) and (saved := _saved(bench, choice)).exists():
        return saved, None, None
    if is_name(choice) and "." not in choice:
        names = ", ".join(sorted(path.stem for path in _folder(bench).glob(f"*{_SUFFIX}"))) or "none"
        raise InvalidRequest(
            f"{bench.handle} has no lens {shown(choice)}; its fitted lenses: {names}.",
            "Fit one with fit_lens, or give the file of one.",
        )
    address, _, revision = choice.partition("@") if "/" in choice else (choice, "", "")
    given = choice if revision and Path(choice).exists() else address
    file = admit_lens(given, bench.settings.allowed_models, bench.settings.folders)
    if file is not None:
        return (file.parent if file.name == "params.pt" else file), None, None
    path, commit = download_lens(address, revision or None, tell)
    return path, address, commit
