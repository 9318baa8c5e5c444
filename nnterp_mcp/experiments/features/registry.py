"""SAELens' registry: releases and ids of published dictionaries, and where on the Hub they lie."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import InvalidRequest, Unsupported

PREFIX = "saelens:"
"""A source that begins so names a release and an id."""

_SHOWN = 5
"""Similar releases or ids that an error names."""


def find_address(source: str, registry: Path | None = None) -> str:
    """The Hub's address of a dictionary in SAELens' registry.

    Args:
        source: `saelens:RELEASE/ID`; the id may have slashes.
        registry: The registry; that of the installed SAELens by default.

    Returns:
        The repository with the path below it.

    Raises:
        InvalidRequest: There is no such release or id.
        Unsupported: SAELens is not installed, or the registry cannot be read.
    """
    release, _, name = source.removeprefix(PREFIX).partition("/")
    releases = _read(registry or _installed())
    if release not in releases:
        raise InvalidRequest(f"SAELens' registry has no release {release!r}{_similar(release, releases)}.")
    found = releases[release]
    paths = {str(one["id"]): str(one["path"]) for one in found.get("saes", ())}
    if name not in paths:
        raise InvalidRequest(f"the release {release} has no dictionary {name!r}{_similar(name, paths)}.")
    return f"{found['repo_id']}/{paths[name]}"


def _installed() -> Path:
    spec = find_spec("sae_lens")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    if not places:
        raise Unsupported(
            "SAELens is not installed, so that its registry of releases cannot be read.",
            "Install sae-lens next to nnterp-mcp, or name the Hub id and the path below it.",
        )
    return Path(places[0]) / "pretrained_saes.yaml"


@cache
def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise Unsupported(f"the registry {path.name} of SAELens cannot be read.") from error
    if not isinstance(found, dict):
        raise Unsupported(f"the registry {path.name} of SAELens lists no releases.")
    return found  # pyright: ignore[reportUnknownVariableType]


def _similar(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = get_close_matches(name, names, _SHOWN, 0.4) or names[:_SHOWN]
    return f": it has {len(names)}, such as {', '.join(close)}"
