"""SAELens' registry: releases and ids of published dictionaries, and where on the Hub they lie."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nnterp_mcp.errors import InvalidRequest, Unsupported

PREFIX = "saelens:"
"""A source that begins so names a release and an id."""

_SHOWN = 5
"""Similar releases or ids that an error names."""


class RegisteredDictionary(NamedTuple):
    """A dictionary in the registry.

    Attributes:
        address: The repository on the Hub with the path below it.
        neuronpedia: The model and the dictionary as Neuronpedia names them; None where it has none.
    """

    address: str
    neuronpedia: str | None


def find_registered(source: str, registry: Path) -> RegisteredDictionary:
    """Looks up a dictionary in SAELens' registry.

    Args:
        source: `saelens:RELEASE/ID`; the id may have slashes.
        registry: The registry's file.

    Raises:
        InvalidRequest: There is no such release or id.
        Unsupported: The registry cannot be read.
    """
    release, _, name = source.removeprefix(PREFIX).partition("/")
    releases = _read(registry)
    if release not in releases:
        raise InvalidRequest(f"SAELens' registry has no release {release!r}{_similar(release, releases)}.")
    found = releases[release]
    known = {str(one["id"]): one for one in found.get("saes", ())}
    if name not in known:
        raise InvalidRequest(f"the release {release} has no dictionary {name!r}{_similar(name, known)}.")
    one = known[name]
    return RegisteredDictionary(f"{found['repo_id']}/{one['path']}", one.get("neuronpedia"))


def installed_registry() -> Path:
    """The registry of the installed SAELens.

    Raises:
        Unsupported: It is not installed.
    """
    spec = find_spec("sae_lens")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    if not places:
        raise Unsupported(
            "SAELens is not installed, so that its registry of releases cannot be read.",
            "Name the Hub id and the path below it; or whoever starts the server installs sae-lens, or has the "
            "registry read from the network with --saelens-registry.",
        )
    return Path(places[0]) / "pretrained_saes.yaml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return _read_once(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise Unsupported(f"the registry {path.name} of SAELens cannot be read.") from error


@cache
def _read_once(path: Path, changed: int) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise Unsupported(f"the registry {path.name} of SAELens cannot be read.") from error
    if not isinstance(found, dict):
        raise Unsupported(f"the registry {path.name} of SAELens lists no releases.")
    return found  # pyright: ignore[reportUnknownVariableType]


def _similar(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = get_close_matches(name, names, _SHOWN, 0.4) or names[:_SHOWN]
    return f": it has {len(names)}, such as {', '.join(close)}"
