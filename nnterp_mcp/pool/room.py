"""The number of models that a server keeps: those with a process of their own, adapters on them, and other scales."""

from __future__ import annotations

from collections.abc import Collection

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.pool.entry import Entry

MOST_ADAPTERS, MOST_SCALED = 16, 8
"""Adapters that are loaded at once, and other scales of them: they share weights, but have factors of their own."""


def require_room_for_model(entries: Collection[Entry], most: int) -> None:
    """Refuses a model where as many have a process of their own as the server allows.

    Raises:
        LimitExceeded: There is no room.
    """
    loaded = [entry.handle for entry in entries if entry.base is None]
    if len(loaded) >= most:
        raise LimitExceeded(
            f"{len(loaded)} models are loaded, and this server allows {most}: {', '.join(loaded)}",
            "Call unload_model for one of them first.",
        )


def require_room_for_adapter(entries: Collection[Entry]) -> None:
    """Refuses an adapter where as many are loaded as a server keeps.

    Raises:
        LimitExceeded: There is no room.
    """
    loaded = [entry.handle for entry in entries if entry.base is not None and not entry.scaled]
    if len(loaded) >= MOST_ADAPTERS:
        raise LimitExceeded(
            f"{len(loaded)} adapters are loaded, and a server keeps no more: {', '.join(loaded)}",
            "Call unload_model for one of them first.",
        )


def replaced_by_scaled(entries: Collection[Entry]) -> Entry | None:
    """The model at another scale that is forgotten for a new one: that used least recently, None while there is room.

    Raises:
        LimitExceeded: All are edited, and would lose their edits.
    """
    scaled = [entry for entry in entries if entry.scaled]
    if len(scaled) < MOST_SCALED:
        return None
    unedited = [entry for entry in scaled if not entry.edits]
    if not unedited:
        raise LimitExceeded(
            f"{len(scaled)} models at other scales have active edits, and a server keeps no more",
            "Clear the edits of one with edit_model (interventions: []) first.",
        )
    return min(unedited, key=lambda entry: entry.used)
