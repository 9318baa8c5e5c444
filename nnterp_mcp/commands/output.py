"""Files that a command writes where it is asked to."""

from __future__ import annotations

from pathlib import Path

from nnterp_mcp.errors import InvalidRequest


def write_output(path: Path, text: str) -> None:
    """Writes a whole file or none: an old one stays as it is where the disk is full.

    Args:
        path: The file; a device such as /dev/stdout is written to as it is.
        text: Its content.

    Raises:
        InvalidRequest: It cannot be written.
    """
    target = path.resolve()
    part = target.with_name(f".{target.name}.part") if target.is_file() or not target.exists() else target
    try:
        part.write_text(text, encoding="utf-8")
        if part != target:
            part.replace(target)
    except OSError as error:
        if part != target:
            part.unlink(missing_ok=True)
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}.") from None
