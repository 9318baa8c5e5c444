"""Fitted lenses that a caller names by their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.experiments.translated_lens.lens_files import read_lens_file
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.lenses import LensCard

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def find_lens(bench: Bench, choice: str) -> tuple[LensTranslation, LensCard] | None:
    """The lens that a caller names; None for one that translates nothing.

    Args:
        bench: The model.
        choice: `logit`, `inverse`, or a file in an allowed folder. Of a tuned lens as it is published, its `params.pt`.

    Raises:
        Forbidden: The file lies outside of the allowed folders, or is a pickle that could run code.
        InvalidRequest: There is no such file, or it is damaged.
    """
    if choice in ("logit", "inverse"):
        return None
    file = allowed_file(choice, bench.settings.folders)
    path = file.parent if file.name == "params.pt" else file
    lens = read_lens_file(path)
    about = lens.provenance
    return lens, LensCard(name=path.name, method=lens.method, prompts=about.prompts, corpus=about.corpus)
