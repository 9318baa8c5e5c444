"""Files that a caller names: read only below the folders that the person who starts the server allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.fields import shown


def allowed_file(name: str, folders: Sequence[Path]) -> Path:
    """The file behind a name.

    Args:
        name: A path; links and `..` are resolved before it is judged, a relative one is tried in each folder.
        folders: Where files may be read.

    Raises:
        Forbidden: It lies outside of the allowed folders; whether it exists there is not told.
        InvalidRequest: There is no such file.
    """
    roots = [folder.expanduser().resolve() for folder in folders]
    candidates = [(root / name).resolve() for root in roots]
    inside = [path for path in candidates if any(path.is_relative_to(root) for root in roots)]
    if not inside:
        raise Forbidden(
            f"{shown(name)} lies outside of the folders from which files are read "
            f"({', '.join(map(str, roots)) or 'none'})",
            "Whoever starts the server allows a folder with --folder.",
        )
    found = next((path for path in inside if path.is_file()), None)
    if found is None:
        raise InvalidRequest(f"there is no file {shown(name)} in {', '.join(map(str, roots))}.")
    return found
