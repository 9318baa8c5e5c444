"""The fitted lenses of a worker's model: kept by name on disk, or read from a published file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.translated_lens.lens_files import read_lens_file, save_lens
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.lenses import OWN, LensCard
from nnterp_mcp.request.vectors import is_name

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_SUFFIX = ".safetensors"


def find_lens(bench: Bench, choice: str) -> tuple[LensTranslation, LensCard] | None:
    """The lens that a caller names; None for one that translates nothing.

    Args:
        bench: The model.
        choice: The name of a fitted lens, or the path of a file in an allowed folder.

    Raises:
        Forbidden: The file lies outside of the allowed folders, or is a pickle that could run code.
        InvalidRequest: There is no such lens, or its file is damaged.
    """
    if choice in OWN:
        return None
    fitted = lens_path(bench, choice) if is_name(choice) else None
    if fitted is None or not fitted.exists():
        fitted = _published(bench, choice)
    lens = read_lens_file(fitted)
    about = lens.provenance
    return lens, LensCard(name=fitted.stem, method=lens.method, prompts=about.prompts, corpus=about.corpus)


def lens_path(bench: Bench, name: str) -> Path:
    """The file of a fitted lens of the loaded model, whether it exists or not."""
    return bench.settings.data / "lenses" / bench.identity.folder / f"{name}{_SUFFIX}"


def keep_lens(bench: Bench, name: str, lens: LensTranslation) -> None:
    """Saves a lens of the loaded model under a name, whole or not at all."""
    path = lens_path(bench, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_lens(replace(lens, provenance=replace(lens.provenance, model=bench.handle)), unfinished)
    unfinished.replace(path)


def _published(bench: Bench, choice: str) -> Path:
    if "/" not in choice and "\\" not in choice and "." not in choice:
        folder = lens_path(bench, "any").parent
        names = ", ".join(sorted(path.stem for path in folder.glob(f"*{_SUFFIX}")))
        known = f"it has {names}" if names else "it has none"
        raise InvalidRequest(
            f"{bench.handle} has no lens {shown(choice)}: {known}.",
            "Give logit or inverse, fit one with fit_lens, or give the path of a published lens.",
        )
    path = allowed_file(choice, bench.settings.folders)
    return path.parent if path.name == "params.pt" else path
