"""Fitted lenses: saved by name for each model, or read from a file that a caller names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.translated_lens.lens_files import read_lens_file, save_lens
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.lenses import UNFITTED, LensCard
from nnterp_mcp.request.vectors import is_name

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_SUFFIX = ".safetensors"


def find_lens(bench: Bench, choice: str) -> tuple[LensTranslation, LensCard] | None:
    """The lens that a caller names; None for one that translates nothing.

    Args:
        bench: The model.
        choice: `logit`, `inverse`, the name of a fitted lens, or a file in an allowed folder. Of a tuned lens as it is
            published, its `params.pt`.

    Raises:
        Forbidden: The file lies outside of the allowed folders, or is a pickle that could run code.
        InvalidRequest: There is no such lens, or its file is damaged.
    """
    if choice in UNFITTED:
        return None
    path = _path(bench, choice)
    lens = read_lens_file(path)
    about = lens.provenance
    own = path.parent == _folder(bench)
    name = path.stem if own else path.name
    return lens, LensCard(name=name, method=lens.method, prompts=about.prompts, corpus=about.corpus)


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


def _folder(bench: Bench) -> Path:
    return bench.settings.data / "lenses" / bench.identity.folder


def _saved(bench: Bench, name: str) -> Path:
    return _folder(bench) / f"{name}{_SUFFIX}"


def _path(bench: Bench, choice: str) -> Path:
    if is_name(choice) and (saved := _saved(bench, choice)).exists():
        return saved
    if is_name(choice) and "." not in choice:
        names = ", ".join(sorted(path.stem for path in _folder(bench).glob(f"*{_SUFFIX}"))) or "none"
        raise InvalidRequest(
            f"{bench.handle} has no lens {shown(choice)}; its fitted lenses: {names}.",
            "Fit one with fit_lens, or give the file of one.",
        )
    file = allowed_file(choice, bench.settings.folders)
    return file.parent if file.name == "params.pt" else file
