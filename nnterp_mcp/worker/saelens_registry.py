"""SAELens' registry as this server may read it: a file, an address, or that of an installed SAELens."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.features.registry import installed_registry
from nnterp_mcp.experiments.features.web import download
from nnterp_mcp.runs.atomic_files import write_whole

_MOST_BYTES = 32_000_000
"""Bytes of the registry; that of SAELens 6.54 has 1.5 million."""

_FRESH = 86_400
"""Seconds for which a downloaded registry is not asked for again."""


def find_registry(given: str | None, cache: Path) -> Path:
    """The registry's file: the one that the server was given, downloaded if it is an address, or an installed one.

    Args:
        given: A file or an address; None for that of the installed SAELens.
        cache: The folder in which a downloaded registry is kept, for when it cannot be reached.

    Raises:
        Unsupported: SAELens is not installed, and no other registry was given; or it cannot be reached.
    """
    if given is None:
        return installed_registry()
    if not given.startswith(("http://", "https://")):
        return Path(given)
    kept = cache / f"saelens-registry-{sha256(given.encode()).hexdigest()[:12]}.yaml"
    if _is_fresh(kept):
        return kept
    try:
        content = download(given, {}, _MOST_BYTES)
    except OSError as error:
        if kept.exists():
            return kept
        raise Unsupported(
            f"the registry of SAELens at {given} cannot be reached ({error}).",
            "Name the Hub id and the path below it, or a file in --saelens-registry.",
        ) from error
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(kept, content)
    return kept


def _is_fresh(kept: Path) -> bool:
    return kept.exists() and time.time() - kept.stat().st_mtime < _FRESH
