"""Atomic writes, so that any number of processes may share a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes, sync: bool = True) -> None:
    """Replaces a file atomically: readers find the old content or the new.

    Args:
        path: The file, in a folder that exists.
        content: All of it.
        sync: Wait until it is on the disk, so that it survives a loss of power.

    Raises:
        OSError: It could not be written; the old file is still there.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as sink:
            sink.write(content)
            sink.flush()
            if sync:
                os.fsync(sink.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
